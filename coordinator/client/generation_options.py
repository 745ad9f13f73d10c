"""The options that say what is generated, as fields of a request: what no server could accept is told at once."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from coordinator.client.constraint_options import constraint_field
from coordinator.client.prompts import check_text
from coordinator.requests import DEFAULT_MAX_TOKENS, priority_problem, stop_violations, timeout_problem
from coordinator.sampling_fields import BIAS, RANGES
from qspec.config import StackConfig
from qspec.errors import FieldViolation, InvalidInput
from qspec.sampling_options import temperature_problem
from qspec.v1 import generation_pb2 as pb

UINT32_MAX = 2**32 - 1
_UINT64_MAX = 2**64 - 1
_AUTO = "auto"
_WHOLE = {
    "max_tokens": (1, UINT32_MAX), "min_tokens": (0, UINT32_MAX), "top_k": (0, UINT32_MAX), "seed": (0, _UINT64_MAX),
}
"""Least and most of whole numbers."""


def add_generation_options(parser: argparse.ArgumentParser) -> None:
    """The group of options."""
    add = parser.add_argument_group("generation").add_argument
    add("--max-tokens", type=int, metavar="N", help=f"most tokens to make (default: {DEFAULT_MAX_TOKENS})")
    add("--min-tokens", type=int, metavar="N", help="tokens to make before the text may end (default: 0)")
    add("--temperature", type=float, metavar="T", help="softmax temperature; 0 is greedy (default: 0)")
    add("--top-k", type=int, metavar="K", help="draw from the K most probable tokens; 0 from all (default: 0)")
    add("--top-p", type=float, metavar="P", help="draw from the smallest set of this probability (default: 1)")
    add("--min-p", type=float, metavar="P", help=(
        "draw from tokens with this share of the best one's probability (default: 0)"))
    add("--typical-p", type=float, metavar="P", help=(
        "draw from the most typical tokens of this probability (default: 1)"))
    add("--repetition-penalty", type=float, metavar="R", help=(
        "make tokens of prompt and text less likely by this factor (default: 1)"))
    add("--presence-penalty", type=float, metavar="X", help="subtract from logits of tokens in the text (default: 0)")
    add("--frequency-penalty", type=float, metavar="X", help=(
        "subtract from a token's logit as often as it is in the text (default: 0)"))
    add("--logit-bias", metavar="ID=X,...", help="add to the logits of single tokens")
    add("--n", type=int, metavar="N", help="texts to make of each prompt (default: 1)")
    add("--echo", action="store_true", help="begin each text with its prompt")
    add("--logprobs", type=int, metavar="N", help=(
        "tell log-probabilities of the tokens, and of the N best (with --json)"))
    add("--prompt-logprobs", type=int, metavar="N", help="the same for the prompt's tokens but for the first")
    add("--seed", type=int, metavar="N", help="makes the text reproducible, with and without speculation")
    add("--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be given several times")
    add("--stop-token-ids", metavar="ID,...", help="end at one of these tokens")
    add("--ignore-eos", action="store_true", help="go on behind an end-of-sequence token")
    add("--json-schema", type=Path, metavar="FILE", help="make JSON that the schema in this file admits")
    add("--regex", metavar="TEXT", help="make a text that this regular expression matches as a whole")
    add("--grammar", type=Path, metavar="FILE", help="make a text of the grammar in this file (Lark's EBNF)")
    add("--deadline", type=float, metavar="SECONDS", help="time that the server has for each prompt (default: any)")
    add("--priority", type=int, metavar="N", help=(
        "your prompts of the highest priority go first where they wait, from -100 to 100 (default: 0)"))
    add("--draft-length", default=_AUTO, metavar="K", help=(
        "tokens to draft per round: a number, 0 for none, or auto (default: auto)"))


def option_of(field: str) -> str:
    """The option that a field of a request, or of a stack's configuration, came from; of an element, its list's."""
    return "--deadline" if field == "timeout_s" else f"--{field.partition('[')[0].replace('_', '-')}"


def generation_violations(args: argparse.Namespace) -> Iterator[FieldViolation]:
    """Everything about the options that no server could accept."""
    for name, (low, high) in _WHOLE.items():
        if (value := getattr(args, name)) is not None and not low <= value <= high:
            yield FieldViolation(option_of(name), f"must be from {low} to {high}, got {value}")
    if args.temperature is not None and (problem := temperature_problem(args.temperature)):
        yield FieldViolation("--temperature", problem)
    for name, bounds in RANGES.items():
        if (value := getattr(args, name)) is not None and (problem := bounds.problem(value)):
            yield FieldViolation(option_of(name), problem)
    if args.deadline is not None and (problem := timeout_problem(args.deadline)):
        yield FieldViolation("--deadline", problem)
    if args.priority is not None and (problem := priority_problem(args.priority)):
        yield FieldViolation("--priority", problem)
    yield from (FieldViolation("--stop", violation.description) for violation in stop_violations(args.stop))
    yield from _violations_of(lambda: _biases(args.logit_bias))
    yield from _violations_of(lambda: _token_ids(args.stop_token_ids))
    yield from _violations_of(lambda: constraint_field(args))
    for stop in filter(None, args.stop):
        yield from _violations_of(partial(check_text, stop, "--stop"))
    if args.draft_length != _AUTO:
        length = int(args.draft_length) if args.draft_length.isascii() and args.draft_length.isdigit() else -1
        longest = UINT32_MAX if args.address is not None else StackConfig().max_draft_length
        if not 0 <= length <= longest:
            limit = "" if args.address is not None else f" up to {longest}"
            yield FieldViolation(
                "--draft-length", f"must be a number{limit}, 0 for none, or auto, got {args.draft_length!r}")


def generation_request(args: argparse.Namespace) -> pb.GenerateRequest:
    """The request without its prompt; options that were not given are left to the server."""
    fields: dict[str, Any] = {name: getattr(args, name) for name in (*_WHOLE, "temperature", *RANGES, "priority")}
    request = pb.GenerateRequest(
        stop=args.stop, stop_token_ids=_token_ids(args.stop_token_ids), ignore_eos=args.ignore_eos,
        echo=args.echo, logit_bias=_biases(args.logit_bias), timeout_s=args.deadline,
        **{name: value for name, value in fields.items() if value is not None}, **constraint_field(args))
    if args.draft_length != _AUTO:
        request.draft_length = int(args.draft_length)
    return request


def _violations_of(check: Callable[[], object]) -> tuple[FieldViolation, ...]:
    try:
        check()
    except InvalidInput as error:
        return error.violations
    return ()


def _biases(text: str | None) -> list[pb.LogitBias]:
    """``ID=X,...``; ``InvalidInput``."""
    biases = []
    for part in text.split(",") if text is not None else ():
        token, _, bias = part.partition("=")
        try:
            biases.append(pb.LogitBias(token_id=_token(token), bias=float(bias)))
        except ValueError:
            raise InvalidInput.field("--logit-bias", f"must be ID=X,..., as 5=1.5,9=-2, got {part!r}") from None
        if problem := BIAS.problem(biases[-1].bias):
            raise InvalidInput.field("--logit-bias", problem)
    return biases


def _token_ids(text: str | None) -> list[int]:
    """``ID,...``; ``InvalidInput``."""
    try:
        return [_token(part) for part in text.split(",")] if text is not None else []
    except ValueError:
        raise InvalidInput.field("--stop-token-ids", f"must be token ids, as 5,9, got {text!r}") from None


def _token(text: str) -> int:
    """A token id; ``ValueError``."""
    token = int(text)
    if not 0 <= token <= UINT32_MAX:
        raise ValueError(text)
    return token
