"""A worker that stops in the middle of its work when a test asks it to: ``python -m tests.e2e.halting_worker``.

The real program with the real engine; the role is the socket's name. When the directory ``$QSPEC_HALT`` has a file
``draft``, ``prefill`` or ``verify``, whoever gets to that point first removes the file and stops itself (SIGSTOP):

- ``draft``: several sequences have their first draft of this round and not their second;
- ``prefill``: the entries of a chunk of a prompt are in the cache, and not yet known to be;
- ``verify``: the first of several sequences is decided on and committed in the arena, the others are not, and nobody
  has been told.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qspec.cli import run_program
from qspec.rpc import engine_thread

PROMPT_ROWS = 8
"""A chunk of more rows than a verification has."""


def halt(where: str) -> None:
    """Stop here if a test asks for it."""
    try:
        (Path(os.environ["QSPEC_HALT"]) / where).unlink()
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGSTOP)


def prepare_verifier() -> None:
    """Give the verifier its two points."""
    from qspec.engine import verifier
    from qspec.engine.slots import SlotTable

    enter, decide = SlotTable.enter_tokens, verifier.LocalVerifier._decide
    decide_rows, decide_greedily = verifier.decide_rows, verifier.decide_greedily
    decided = [0]

    def enter_tokens(self: SlotTable, slot: int, start: int, token_ids: Any) -> None:
        enter(self, slot, start, token_ids)
        if len(token_ids) > PROMPT_ROWS:
            halt("prefill")

    def count_from_none(self: verifier.LocalVerifier, *arguments: Any) -> None:
        decided[0] = 0
        decide(self, *arguments)

    def count_one() -> None:
        decided[0] += 1
        if decided[0] == 2:
            halt("verify")

    def count_rows(*arguments: Any) -> Any:
        count_one()
        return decide_rows(*arguments)

    def count_greedy(*arguments: Any) -> Any:
        count_one()
        return decide_greedily(*arguments)

    SlotTable.enter_tokens = enter_tokens  # type: ignore[method-assign]
    verifier.LocalVerifier._decide = count_from_none  # type: ignore[method-assign]
    verifier.decide_rows, verifier.decide_greedily = count_rows, count_greedy


def prepare_drafter() -> None:
    """Give the drafter its point."""
    from qspec.engine.drafter import LocalDrafter

    choose = LocalDrafter._choose

    def choose_or_halt(self: LocalDrafter, attached: Any, draft: Any, logits: Any, step: int) -> None:
        if step == 1:
            halt("draft")
        choose(self, attached, draft, logits, step)

    LocalDrafter._choose = choose_or_halt  # type: ignore[method-assign]


def main() -> None:
    """The program of the role, prepared where it loads its engine: nothing may import torch before."""
    role = next(Path(argument).stem for argument in sys.argv if argument.startswith("--listen="))
    prepare = prepare_verifier if role == "verifier" else prepare_drafter
    thread = engine_thread.EngineThread

    def prepared_thread(load: Callable[[], Any], *, name: str) -> Any:
        def load_prepared() -> Any:
            prepare()
            return load()

        return thread(load_prepared, name=name)

    engine_thread.EngineThread = prepared_thread  # type: ignore[assignment, misc]
    if role == "verifier":
        from verifier.__main__ import main as program
    else:
        from drafter.__main__ import main as program
    program()


if __name__ == "__main__":
    run_program(main)  # type: ignore[arg-type]  # it does not return
