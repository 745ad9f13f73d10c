"""The client's command line, checked before anything is started."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NoReturn

from coordinator.client.prompts import check_text, read_prompts
from coordinator.requests import DEFAULT_MAX_TOKENS, stop_violations, temperature_problem, top_p_problem
from qspec.cli import EXIT_ERROR
from qspec.config import DEVICES, KERNELS, StackConfig
from qspec.device import configured_backend
from qspec.errors import FieldViolation, InvalidInput
from qspec.models.resolve import resolve
from qspec.quant.method_plan import check_methods
from qspec.quant.methods import Role
from qspec.rpc.addresses import parse_address
from qspec.v1 import generation_pb2 as pb

_UINT32_MAX = 2**32 - 1
_UINT64_MAX = 2**64 - 1
_STACK_OPTIONS = (
    "model", "draft_quantization", "verify_quantization", "draft_overrides", "verify_overrides", "threads",
    "kernels", "device",
)
_AUTO = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """One run of the client."""

    prompts: tuple[str, ...]
    """At least one."""
    address: str | None
    """A running server; None starts a private stack."""
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
    violations = list(_number_violations(args))
    for check in (lambda: read_prompts(args.prompt, args.prompts_file), lambda: _check_stack(args)):
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
        stack=StackConfig(**given),
        raw=args.raw,
        as_json=args.json,
        timeout_s=args.timeout,
        request=_request(args),
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
    sampling = parser.add_argument_group("generation")
    add = sampling.add_argument
    add("--max-tokens", type=int, metavar="N", help=f"most tokens to make (default: {DEFAULT_MAX_TOKENS})")
    add("--temperature", type=float, metavar="T", help="softmax temperature; 0 is greedy (default: 0)")
    add("--top-k", type=int, metavar="K", help="draw from the K most probable tokens; 0 from all (default: 0)")
    add("--top-p", type=float, metavar="P", help="draw from the smallest set of this probability (default: 1)")
    add("--seed", type=int, metavar="N", help="makes the text reproducible, with and without speculation")
    add("--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be given several times")
    add("--draft-length", default=_AUTO, metavar="K", help=(
        "tokens to draft per round: a number, 0 for none, or auto (default: auto)"))
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


def _number_violations(args: argparse.Namespace) -> list[FieldViolation]:
    """Everything about the generation options that no server could accept."""
    found: list[FieldViolation] = []

    def whole(option: str, value: int | None, low: int, high: int) -> None:
        if value is not None and not low <= value <= high:
            found.append(FieldViolation(option, f"must be from {low} to {high}, got {value}"))

    whole("--max-tokens", args.max_tokens, 1, _UINT32_MAX)
    whole("--top-k", args.top_k, 0, _UINT32_MAX)
    whole("--seed", args.seed, 0, _UINT64_MAX)
    if args.temperature is not None and (problem := temperature_problem(args.temperature)):
        found.append(FieldViolation("--temperature", problem))
    if args.top_p is not None and (problem := top_p_problem(args.top_p)):
        found.append(FieldViolation("--top-p", problem))
    if args.timeout is not None and not (math.isfinite(args.timeout) and args.timeout > 0):
        found.append(FieldViolation("--timeout", f"must be a number of seconds above 0, got {args.timeout:g}"))
    found += (FieldViolation("--stop", violation.description) for violation in stop_violations(args.stop))
    for stop in filter(None, args.stop):
        try:
            check_text(stop, "--stop")
        except InvalidInput as error:
            found += error.violations
    if args.draft_length != _AUTO:
        length = int(args.draft_length) if args.draft_length.isascii() and args.draft_length.isdigit() else -1
        longest = _UINT32_MAX if args.address is not None else StackConfig().max_draft_length
        if not 0 <= length <= longest:
            limit = "" if args.address is not None else f" up to {longest}"
            found.append(FieldViolation(
                "--draft-length", f"must be a number{limit}, 0 for none, or auto, got {args.draft_length!r}"))
    return found


def _check_stack(args: argparse.Namespace) -> None:
    """Whether the private stack could be started, or the server be addressed."""
    given = {name: getattr(args, name) for name in _STACK_OPTIONS if getattr(args, name) is not None}
    if args.address is not None:
        parse_address(args.address, "--address")
        if given:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
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
        options = {field.name: f"--{field.name.replace('_', '-')}" for field in fields(StackConfig)}
        raise InvalidInput(*(FieldViolation(options.get(v.field, v.field), v.description) for v in violations))


def _request(args: argparse.Namespace) -> pb.GenerateRequest:
    """The request without its prompt; options that were not given are left to the server."""
    request = pb.GenerateRequest(stop=args.stop)
    for name in ("max_tokens", "temperature", "top_k", "top_p", "seed"):
        if (value := getattr(args, name)) is not None:
            setattr(request, name, value)
    if args.draft_length != _AUTO:
        request.draft_length = int(args.draft_length)
    return request
