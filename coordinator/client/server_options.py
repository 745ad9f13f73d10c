"""How a server at ``--address`` is reached: TLS and the API key."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from coordinator.client.generation_options import option_of
from qspec.client import AsyncClient, RetryPolicy, Tls
from qspec.client.connection import make_connection
from qspec.errors import FieldViolation, InvalidInput

API_KEY_VARIABLE = "QSPEC_API_KEY"
_OPTIONS = ("tls", "tls_ca", "tls_client_cert", "tls_client_key", "api_key_file", "insecure")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """What is said to a server before it is asked anything."""

    tls: Tls | None = None
    api_key: str | None = None
    insecure: bool = False

    def client(self, address: str, *, retry: RetryPolicy) -> AsyncClient:
        """A client of the server at ``address``."""
        return AsyncClient(address, tls=self.tls, api_key=self.api_key, retry=retry, insecure=self.insecure)


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """The group of options."""
    add = parser.add_argument_group("server (with --address)").add_argument
    add("--tls", action="store_true", help="speak TLS, and believe the authorities that gRPC brings")
    add("--tls-ca", type=Path, metavar="FILE", help="speak TLS, and believe these authorities, PEM")
    add("--tls-client-cert", type=Path, metavar="FILE", help="speak TLS, and show this certificate, PEM")
    add("--tls-client-key", type=Path, metavar="FILE", help="its key, PEM")
    add("--api-key-file", type=Path, metavar="FILE", help=(
        f"show the API key in this file (default: the one in the environment's {API_KEY_VARIABLE}, if any)"))
    add("--insecure", action="store_true", help="send the API key in plain text to another host")


def server_options(args: argparse.Namespace) -> ServerOptions:
    """The options, tried out but for the connection itself; ``InvalidInput`` names them."""
    given = [name for name in _OPTIONS if getattr(args, name)]
    if args.address is None:
        if given:
            names = ", ".join(map(option_of, given))
            raise InvalidInput.field(names, "is for a server: give its --address as well")
        return ServerOptions()
    tls = None
    if any(name.startswith("tls") for name in given):
        tls = Tls(ca=args.tls_ca, certificate=args.tls_client_cert, key=args.tls_client_key)
    options = ServerOptions(tls=tls, api_key=_api_key(args.api_key_file), insecure=args.insecure)
    try:
        make_connection(args.address, tls=tls, api_key=options.api_key, client_id=None, insecure=args.insecure)
    except InvalidInput as error:
        key = API_KEY_VARIABLE if args.api_key_file is None else "--api-key-file"
        raise InvalidInput(*(
            FieldViolation(key if v.field == "api_key" else option_of(v.field), v.description) for v in error.violations
        )) from error
    return options


def _api_key(path: Path | None) -> str | None:
    if path is None:
        return os.environ.get(API_KEY_VARIABLE) or None
    try:
        return path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        problem = error.strerror if isinstance(error, OSError) else "not valid UTF-8"
        raise InvalidInput.field("--api-key-file", f"{path} cannot be read: {problem}") from None
