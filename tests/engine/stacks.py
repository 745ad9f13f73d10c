"""Workers of one process over a tiny model, and texts that a loop makes with them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from collections.abc import Sequence as Items
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qspec.config import StackConfig
from qspec.engine.drafter import LocalDrafter
from qspec.engine.verifier import LocalVerifier
from qspec.interfaces import Drafter, Sampling, Verifier, VerifyBatch
from qspec.sequence import Sequence
from qspec.speculation import SpeculationLoop

PROMPTS = (
    (17,),
    (5, 9, 5, 9, 5),
    tuple(range(3, 20)),
    tuple(7 * i % 300 + 3 for i in range(33)),
    (250, 4),
)
MAX_TOKENS = 20
SEEDED = Sampling(temperature=0.9, top_k=40, top_p=0.95, seed=12345)
MOST_ROUNDS = 2000
KERNELS: ContextVar[str] = ContextVar("KERNELS", default="torch")
"""``StackConfig.kernels`` of stacks that do not say; the fixture ``kernels`` sets it."""


def quiet(_what: str, _share: float | None) -> None:
    """Progress that nobody watches."""


def config(model: Path, **changes: Any) -> StackConfig:
    """A small stack."""
    small = StackConfig(
        model=str(model), draft_quantization="w8a8", verify_quantization="none", max_slots=5, kv_tokens=640,
        block_size=16, max_batch_rows=64, kernels=KERNELS.get())
    return replace(small, **changes)


@dataclass(slots=True)
class Stack:
    """A loop with its workers."""

    verifier: LocalVerifier
    drafter: LocalDrafter | None
    loop: SpeculationLoop

    @property
    def free_blocks(self) -> int:
        """KV blocks that nobody holds."""
        return free_blocks(self.verifier)


@contextlib.contextmanager
def running(
    model: Path, *, kind: type[LocalVerifier] = LocalVerifier, epoch: int = 1, **changes: Any
) -> Iterator[Stack]:
    """A verifier, a drafter unless ``draft_quantization`` is ``off``, and a loop that has both."""
    settings = config(model, **changes)
    verifier = kind.load(settings, progress=quiet, epoch=epoch)
    drafter = None if settings.draft_quantization == "off" else LocalDrafter.load(settings, progress=quiet)
    try:
        yield Stack(verifier, drafter, attached_loop(verifier, drafter))
    finally:
        if drafter is not None:
            drafter.close()
        verifier.close()


def attached_loop(verifier: Verifier, drafter: Drafter | None) -> SpeculationLoop:
    """A loop with these workers."""
    loop = SpeculationLoop()
    loop.attach_verifier(verifier)
    if drafter is not None:
        loop.attach_drafter(drafter)
    return loop


def sequences(
    sampling: Sampling = Sampling(), *, draft_length: int | None = None, prompts: Items[tuple[int, ...]] = PROMPTS,
    max_tokens: int = MAX_TOKENS,
) -> list[Sequence]:
    """One sequence per prompt."""
    return [
        Sequence(str(index), list(prompt), max_tokens, sampling, draft_length=draft_length)
        for index, prompt in enumerate(prompts)
    ]


def generate(loop: SpeculationLoop, wanted: Items[Sequence]) -> list[list[int]]:
    """Make these texts in one batch, and give everything back."""
    for sequence in wanted:
        loop.add(sequence)
    return finish(loop, wanted)


def finish(loop: SpeculationLoop, wanted: Items[Sequence]) -> list[list[int]]:
    """Go on until nothing is left to do."""
    for _ in range(MOST_ROUNDS):
        if not loop.has_work:
            return [sequence.generated for sequence in wanted]
        loop.step()
    raise AssertionError("the loop does not come to an end")


def generate_alone(loop: SpeculationLoop, wanted: Items[Sequence]) -> list[list[int]]:
    """Make these texts one after the other."""
    return [generate(loop, [sequence])[0] for sequence in wanted]


def free_blocks(verifier: Verifier) -> int:
    """KV blocks that nobody holds."""
    return verifier.verify(VerifyBatch(epoch=verifier.describe().epoch, round=1 << 40)).free_blocks
