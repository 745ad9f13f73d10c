"""The client's command line, checked before anything is started."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NoReturn

from coordinator.client.generation_options import (
    add_generation_options,
    generation_request,
    generation_violations,
    option_of,
)
from coordinator.client.prompts import read_prompts
from coordinator.client.server_options import ServerOptions, add_server_options, server_options
from qspec.cli import EXIT_ERROR
from qspec.config import DEVICES, KERNELS, StackConfig
from qspec.device import configured_backend
from qspec.errors import FieldViolation, InvalidInput
from qspec.models.resolve import resolve
from qspec.quant.method_plan import check_methods
from qspec.quant.methods import Role
from qspec.v1 import generation_pb2 as pb

_STACK_OPTIONS = (
    "model", "draft_quantization", "verify_quantization", "draft_overrides", "verify_overrides", "threads",
    "kernels", "device",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """One run of the client."""

    prompts: tuple[str, ...]
    """At least one."""
    address: str | None
    """A running server; None starts a private stack."""
    server: ServerOptions
    """How it is reached."""
    stack: StackConfig
    """What a private stack runs."""
    raw: bool
    """Feed prompts as they are, without a chat template."""
    as_json: bool
    """Print JSON objects instead of text."""
    timeout_s: float | None
    """Seconds after which the run is given up."""
    request: pb.GenerateRequest
    """Everything but the prompt."""

    @property
    def choices(self) -> int:
        """Texts of each prompt."""
        return self.request.n if self.request.HasField("n") else 1

    def request_for(self, prompt: str) -> pb.GenerateRequest:
        """The request for one prompt."""
        request = pb.GenerateRequest()
        request.CopyFrom(self.request)
        if self.raw:
            request.text = prompt
        else:
            request.chat.messages.add(role=pb.CHAT_ROLE_USER, content=prompt)
        return request


class _Parser(argparse.ArgumentParser):
    """Reports an option that cannot be read in one line."""

    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"error: {message} (--help lists all options)\n")
        sys.exit(EXIT_ERROR)


def parse_options(arguments: Sequence[str]) -> ClientOptions:
    """The options of one run; ``InvalidInput`` names every option that cannot be used."""
    args = _parser().parse_args(arguments)
    violations = _violations(args)
    for check in (
        lambda: read_prompts(args.prompt, args.prompts_file), lambda: _check_stack(args), lambda: server_options(args),
    ):
        try:
            check()
        except InvalidInput as error:
            violations += error.violations
    if violations:
        raise InvalidInput(*violations)
    given = {name: value for name in _STACK_OPTIONS if (value := getattr(args, name)) is not None}
    return ClientOptions(
        prompts=read_prompts(args.prompt, args.prompts_file),
        address=args.address,
        server=server_options(args),
        stack=StackConfig(**given),
        raw=args.raw,
        as_json=args.json,
        timeout_s=args.timeout,
        request=generation_request(args),
    )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m coordinator.client",
        description="Generates text. Without --address a private stack is started, and ended again.",
    )
    add = parser.add_argument
    add("--prompt", action="append", default=[], metavar="TEXT", help="what to answer; may be given several times")
    add("--prompts-file", action="append", default=[], type=Path, metavar="FILE", help=(
        "one prompt per line, or .jsonl with objects that have a \"prompt\" or \"turns\" (the first is used)"))
    add("--raw", action="store_true", help="continue the prompt as it is, without the model's chat template")
    add("--json", action="store_true", help="print one JSON object per prompt and nothing else")
    add("--address", metavar="ADDRESS", help="use the server at HOST:PORT or unix:PATH instead of a private stack")
    add("--timeout", type=float, metavar="SECONDS", help="give up after this time (default: never)")
    add_server_options(parser)
    add_generation_options(parser)
    stack = parser.add_argument_group("private stack (without --address)")
    add = stack.add_argument
    default = StackConfig()
    add("--model", metavar="NAME", help=f"alias, directory, GGUF file or hub id (default: {default.model})")
    add("--draft-quantization", metavar="METHOD", help=(
        f"the drafter's method, or off for none (default: {default.draft_quantization})"))
    add("--verify-quantization", metavar="METHOD", help=(
        f"the verifier's method (default: {default.verify_quantization})"))
    add("--draft-overrides", metavar="GLOB=METHOD,...", help=(
        "other methods for single layers of the drafter, the last match wins: lm_head=none,layers.0.*=int8"))
    add("--verify-overrides", metavar="GLOB=METHOD,...", help="the same for the verifier")
    add("--threads", type=int, metavar="N", help="CPU threads per worker (default: what there is)")
    add("--kernels", choices=KERNELS, help=(
        f"what computes: native kernels, torch's operations, or auto (default: {default.kernels})"))
    add("--device", choices=DEVICES, help=(
        f"where the model runs: a CPU, an NVIDIA GPU, or auto (default: {default.device})"))
    return parser


def _violations(args: argparse.Namespace) -> list[FieldViolation]:
    """Everything about the options that could not be used whatever the prompts are."""
    found = list(generation_violations(args))
    if args.timeout is not None and not (math.isfinite(args.timeout) and args.timeout > 0):
        found.append(FieldViolation("--timeout", f"must be a number of seconds above 0, got {args.timeout:g}"))
    return found


def _check_stack(args: argparse.Namespace) -> None:
    """Whether the private stack could be started, or the server be addressed."""
    given = {name: getattr(args, name) for name in _STACK_OPTIONS if getattr(args, name) is not None}
    if args.address is not None:
        if given:
            names = ", ".join(map(option_of, given))
            raise InvalidInput.field(names, "is for a private stack: leave it out, the server at --address has its own")
        return
    violations: list[FieldViolation] = []
    config = StackConfig()
    try:
        config = StackConfig(**given)
    except InvalidInput as error:
        violations += error.violations
    for check in (
        lambda: check_methods(config, Role.DRAFT, configured_backend(config)),
        lambda: check_methods(config, Role.VERIFY, configured_backend(config)),
        lambda: resolve(config.model),
    ):
        try:
            check()
        except InvalidInput as error:
            violations += error.violations
    if violations:
        options = {field.name: option_of(field.name) for field in fields(StackConfig)}
        raise InvalidInput(*(FieldViolation(options.get(v.field, v.field), v.description) for v in violations))
