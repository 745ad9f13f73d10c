"""What the client writes: text as it is decided, blocks when there are several prompts, or JSON.

The text goes to standard output, everything else to standard error. With ``--json`` standard output has one object per
prompt, in the order of the prompts, and nothing else.
"""

from __future__ import annotations

import json
import sys
from typing import Protocol, TextIO

from coordinator.client.answer import Answer


class Output(Protocol):
    """Takes the pieces and ends of several answers, in whatever order they come."""

    def piece(self, index: int, text: str) -> None:
        """Text of prompt ``index`` was decided."""
        ...

    def answer(self, index: int, answer: Answer) -> None:
        """Prompt ``index`` has its whole text."""
        ...

    def failure(self, index: int, prompt: str, message: str) -> None:
        """Prompt ``index`` has no text, or only a part of it."""
        ...

    def close(self) -> None:
        """Nothing more comes, whether all is there or not."""
        ...


class StreamedOutput:
    """One prompt: its text as it comes, then the figures."""

    def __init__(self, out: TextIO = sys.stdout, err: TextIO = sys.stderr) -> None:
        self._out, self._err = out, err
        self._written = ""

    def piece(self, index: int, text: str) -> None:
        """See ``Output``."""
        if text:
            self._written = text
            self._out.write(text)
            self._out.flush()

    def answer(self, index: int, answer: Answer) -> None:
        """See ``Output``."""
        self.close()
        self._err.write(f"{answer.summary()}\n")

    def failure(self, index: int, prompt: str, message: str) -> None:
        """See ``Output``."""
        self.close()
        self._err.write(f"error: {message}\n")

    def close(self) -> None:
        """Let what comes next, an error perhaps, start on a line of its own."""
        if self._written and not self._written.endswith("\n"):
            self._out.write("\n")
            self._out.flush()
        self._written = ""


class OrderedOutput:
    """Several prompts: each answer in one piece, in the order of the prompts."""

    def __init__(self, count: int, *, as_json: bool, out: TextIO = sys.stdout, err: TextIO = sys.stderr) -> None:
        self._count = count
        self._as_json = as_json
        self._out, self._err = out, err
        self._blocks: dict[int, tuple[str, str]] = {}
        self._next = 0

    def piece(self, index: int, text: str) -> None:
        """See ``Output``; kept back until the answer is whole."""

    def answer(self, index: int, answer: Answer) -> None:
        """See ``Output``."""
        if self._as_json:
            self._add(index, json.dumps(answer.to_json(), ensure_ascii=False) + "\n", "")
        else:
            self._add(index, f"{self._heading(index, answer.prompt)}{answer.text}\n\n",
                      f"[{index + 1}/{self._count}] {answer.summary()}\n")

    def failure(self, index: int, prompt: str, message: str) -> None:
        """See ``Output``."""
        where = f"[{index + 1}/{self._count}] " if self._count > 1 else ""
        block = ""
        if self._as_json and self._count > 1:  # keeps the objects aligned with the prompts
            block = json.dumps({"prompt": prompt, "error": message}, ensure_ascii=False) + "\n"
        self._add(index, block, f"{where}error: {message}\n")

    def close(self) -> None:
        """See ``Output``; everything was written when it was whole."""

    def _heading(self, index: int, prompt: str) -> str:
        first = prompt.strip().splitlines()[0] if prompt.strip() else ""
        return f"[{index + 1}/{self._count}] {first if len(first) <= 72 else first[:71] + '…'}\n"

    def _add(self, index: int, out: str, err: str) -> None:
        self._blocks[index] = (out, err)
        while self._next in self._blocks:
            out, err = self._blocks.pop(self._next)
            self._out.write(out)
            self._out.flush()
            self._err.write(err)
            self._err.flush()
            self._next += 1
