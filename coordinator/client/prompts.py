"""The prompts of one run: from ``--prompt`` and from files."""

from __future__ import annotations

import json
from pathlib import Path

from qspec.errors import InvalidInput


def read_prompts(given: list[str], files: list[Path]) -> tuple[str, ...]:
    """All prompts, those given as text first; ``InvalidInput`` names the option, and in a file the line."""
    for prompt in given:
        check_text(prompt, "--prompt")
    prompts = [*given, *(prompt for file in files for prompt in _read_file(file))]
    if not prompts:
        raise InvalidInput.field("--prompt", 'is missing: give --prompt "TEXT" (repeatable) or --prompts-file FILE')
    return tuple(prompts)


def check_text(text: str, option: str) -> None:
    """``InvalidInput`` for a text that is empty, or that came as bytes that are no UTF-8."""
    if not text:
        raise InvalidInput.field(option, "is empty: give at least one character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInput.field(option, "is not valid UTF-8: convert it first") from None


def _read_file(path: Path) -> list[str]:
    """One prompt per line; in a ``.jsonl`` file one object per line. Empty lines are skipped."""
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise InvalidInput.field("--prompts-file", f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidInput.field("--prompts-file", f"{path} is not valid UTF-8: convert it first") from error
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise InvalidInput.field("--prompts-file", f"{path} has no prompts: write one per line")
    if path.suffix == ".jsonl":
        return [_prompt_of(line, f"{path}, line {number}") for number, line in lines]
    return [line.rstrip("\r") for _, line in lines]


def _prompt_of(line: str, where: str) -> str:
    """The prompt of one object: ``prompt``, or the first of ``turns``."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InvalidInput.field("--prompts-file", f"{where}: no JSON ({error.msg})") from error
    prompt: object = None
    if isinstance(record, dict):
        turns = record.get("turns")
        prompt = record.get("prompt", turns[0] if isinstance(turns, list) and turns else None)
    if not isinstance(prompt, str) or not prompt:
        raise InvalidInput.field(
            "--prompts-file", f'{where}: give an object with "prompt" or "turns" (a list whose first text is used)')
    check_text(prompt, "--prompts-file")
    return prompt
