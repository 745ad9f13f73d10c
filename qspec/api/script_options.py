"""Options that the two scripts at the root share, and the models that they name. Imports no torch."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from qspec.config import DEFAULT_MODEL
from qspec.errors import InvalidInput
from qspec.quant.methods import AUTO


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """Which model drafts, which verifies; equal names mean one model that drafts for itself."""

    draft: str
    verify: str

    @property
    def same(self) -> bool:
        """Whether one model does both."""
        return self.draft == self.verify


def add_script_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the QSPEC extension whose names these are, and the temperature."""
    add = parser.add_argument
    add("--input", metavar="TEXT", help="the prompt")
    add("--model_name", default=DEFAULT_MODEL, metavar="NAME", help=(
        "alias, directory, GGUF file or hub id of the model that drafts for itself (default: %(default)s)"))
    add("--draft_model_name", metavar="NAME", help="another model that drafts (default: that of --model_name)")
    add("--verify_model_name", metavar="NAME", help="the model that verifies (default: that of --model_name)")
    add("--draft_quantization", default=AUTO, metavar="METHOD", help=(
        "the drafter's method; auto is the one that pays on this machine, found by timing (default: %(default)s)"))
    add("--verify_quantization", default=AUTO, metavar="METHOD", help=(
        "the verifier's method, whose text it is; auto is none, in the fastest dtype here (default: %(default)s)"))
    add("--max_tokens", "-M", type=int, default=64, metavar="N", help="most new tokens (default: %(default)s)")
    add("--gamma", "-g", type=int, default=4, metavar="N", help="tokens drafted per round (default: %(default)s)")
    add("--verbose", "-v", action="store_true", help="colour the text by accepted, recovered and bonus tokens")
    add("--seed", "-s", type=int, metavar="N", help="make the same text in every run (default: fresh noise)")
    add("--same_model", action="store_true", help="let --model_name draft for itself, whatever other names say")


def model_choice(args: argparse.Namespace) -> ModelChoice:
    """The models that ``add_script_arguments`` read; ``InvalidInput`` for an empty name."""
    for option in ("model_name", "draft_model_name", "verify_model_name"):
        if getattr(args, option) == "":
            raise InvalidInput.field(f"--{option}", "is empty; give an alias, a directory, a GGUF file or a hub id")
    if args.same_model:
        return ModelChoice(args.model_name, args.model_name)
    return ModelChoice(args.draft_model_name or args.model_name, args.verify_model_name or args.model_name)
