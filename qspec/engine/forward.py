"""What verifier and drafter need of a model: the one seam behind which torch's operations or native kernels compute.

A *forward* is a model whose linear layers have the kernels of one method. It knows neither slots' leases nor sampling;
its caller says where keys and values lie, so that one forward serves the arena's blocks and private ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from qspec.engine.passes import SequenceRows
from qspec.interfaces import MemoryItem, Sampling
from qspec.kernels.triton.row_draws import RowDraw, RowVerdict
from qspec.models.config import DecoderConfig


class Forward(Protocol):
    """A model that computes rows over KV blocks."""

    @property
    def config(self) -> DecoderConfig:
        """The architecture."""
        ...

    def rows(self, sequences: Sequence[SequenceRows], keys: Tensor, values: Tensor) -> Tensor:
        """Run adjacent positions of some sequences, in their order, and enter them: ``[rows, H]``.

        ``keys``, ``values``: ``[layers, blocks, kv_heads, block, D]``, float32, on a GPU fp16.
        """
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm and ``lm_head``: ``[rows, H] -> [rows, V]``, float32."""
        ...

    def greedy(self, hidden: Tensor) -> list[int]:
        """The token of each row's largest logit, the lowest of equals. ``[rows, H]``."""
        ...

    def empty_cache(self, shape: tuple[int, ...]) -> Tensor:
        """Zeros for keys or values of one's own, of the type and in the memory that ``rows`` takes them."""
        ...

    def for_drafting(self) -> Forward:
        """The same model where a row's bits may depend on the rows beside it, if that is faster."""
        ...

    def computing(self) -> AbstractContextManager[object]:
        """Around each batch: sees to it that torch's threads do not take the CPUs from the kernels'."""
        ...


@dataclass(frozen=True, slots=True)
class DraftContext:
    """Where a sequence stands that is to be drafted for."""

    slot: int
    """Whose tail is written."""
    length: int
    """Committed positions that the tail follows."""
    block_ids: tuple[int, ...]
    """Their blocks."""


@dataclass(frozen=True, slots=True)
class DraftCache:
    """Committed blocks, only read, and tails: ``[layers, blocks, kv_heads, block, D]`` and
    ``[layers, slots, kv_heads, k_max, D]``.
    """

    keys: Tensor
    values: Tensor
    tail_keys: Tensor
    tail_values: Tensor


class DraftPass(Protocol):
    """One draft call: some steps for the same sequences."""

    def step(self, tokens: Mapping[int, int], step: int) -> Tensor:
        """Feed a token to each of some slots, at ``length + step``, entering it into its tail: ``[len(tokens), H]``.

        In the order of ``tokens``. Steps go 0, 1, …
        """
        ...


@runtime_checkable
class GreedyDraftPass(DraftPass, Protocol):
    """One that can feed its own greedy tokens, so that no step waits for the host."""

    def greedy_steps(self, tokens: Mapping[int, int], steps: int) -> dict[int, list[int]]:
        """Feed a token to each of some slots, and then what it gives: ``steps`` tokens by slot. In place of steps."""
        ...


@runtime_checkable
class SamplingDraftPass(DraftPass, Protocol):
    """One that can draw tokens by itself, too."""

    def sampled_steps(
        self, tokens: Mapping[int, int], samplings: Mapping[int, Sampling], steps: int, distributions: Tensor
    ) -> dict[int, list[int]] | None:
        """The same, each slot's tokens drawn as its request says; None where the host has to draw one of them.

        Under the rejection rule leaves the distributions of slot s in ``distributions[s]``, ``[slots, k_max, V]``.
        """
        ...


@runtime_checkable
class DecidingForward(Forward, Protocol):
    """One that can draw the tokens of a pass's rows, and decide on drafts, in the same launch as the rows."""

    @property
    def memory(self) -> tuple[MemoryItem, ...]:
        """What its passes take beside weights and caches."""
        ...

    def decides(self, sampling: Sampling) -> bool:
        """Whether it can for such a request: whatever the batch, so that a text does not depend on it."""
        ...

    def decided_rows(
        self, sequences: Sequence[SequenceRows], keys: Tensor, values: Tensor, draws: Sequence[RowDraw | None],
        distributions: Tensor,
    ) -> tuple[Tensor, list[RowVerdict | None]]:
        """``rows``, and what each row says that has an entry in ``draws`` (one for each row).

        ``distributions``: ``[slots, k_max, V]``, which the rejection rule needs (``RowDraw.distribution`` counts its
        rows).
        """
        ...


class DraftForward(Forward, Protocol):
    """A forward that can also draft."""

    def draft_pass(self, contexts: Sequence[DraftContext], cache: DraftCache) -> DraftPass:
        """Begin to draft for some sequences."""
        ...
