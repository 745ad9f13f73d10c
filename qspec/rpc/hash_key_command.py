"""``python -m qspec hash-key``: a new API key for a client, and its line for the server's file."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from qspec.rpc.api_keys import key_line, new_key


def add_hash_key_command(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the subcommand; its ``run`` takes the parsed arguments and returns the exit code."""
    parser = commands.add_parser(
        "hash-key", help="a line for the server's --api-keys-file",
        description="Draws an API key and shows it on standard error, once; standard output has its line for the file "
                    "of --api-keys-file: python -m qspec hash-key alice >> keys.txt",
    )
    parser.add_argument("name", metavar="NAME", help="whose key it is")
    parser.add_argument("--stdin", action="store_true", help="hash the key on standard input instead of drawing one")
    parser.set_defaults(run=run_hash_key)


def run_hash_key(args: argparse.Namespace) -> int:
    """Print the line; returns the exit code. Raises ``InvalidInput`` for a name or a key that cannot be used."""
    key = sys.stdin.readline().strip() if args.stdin else new_key()
    print(key_line(args.name, key))
    if not args.stdin:
        sys.stderr.write(f"the key of {args.name}, which is shown only here: {key}\n")
    return 0
