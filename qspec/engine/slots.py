"""The verifier's memory of who sits in which slot, and of what lies in its KV blocks.

Full blocks of committed tokens are named by them, and a tenancy that says its tokens begins with the blocks that have
them already (``qspec.memory.prefix_blocks``). The drafter reads block tables, so it has a part in that without knowing.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from qspec.constraint import Constraint
from qspec.engine.batch_state import numbers
from qspec.engine.regions import BLOCK_TABLES, SLOT_CACHED, SLOT_LEASES, SLOT_PROMPTS, SLOT_TOKENS
from qspec.errors import ContractViolation
from qspec.grammar_matcher import GrammarMatcher
from qspec.interfaces import Admission, Release, Sampling, TokenLogprobs, VerifyResult
from qspec.memory.attachment import Arena
from qspec.memory.prefix_blocks import PrefixBlocks
from qspec.prefix_hash import block_hash, prefix_hashes, root_hash


@dataclass(slots=True)
class Tenancy:
    """One sequence in a slot: its blocks, what is cached, and the last answer (for a repeated question)."""

    lease: int
    sampling: Sampling
    prompt_len: int = 0
    constraint: Constraint | None = None
    compilation: Future[GrammarMatcher | None] | None = None
    """What becomes of the constraint."""
    blocks: list[int] = field(default_factory=list)
    block_names: list[bytes] = field(default_factory=list)
    """Of the first of them: the full ones."""
    root: bytes = b""
    """What the first name is made of, beside its tokens: the salt."""
    cached_len: int = 0
    reused_len: int = 0
    """Positions that were cached when it began."""
    prefilled_from: int = -1
    """Where the last prefilled chunk began that log-probabilities of the prompt came of,"""
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    """and what they were (for a repeated question)."""
    answered_len: int = 0
    """Committed length that ``answer`` was given for."""
    answer: VerifyResult | None = None
    answered_round: int = 0
    """The round that gave it."""

    @property
    def awaits_constraint(self) -> bool:
        """Whether nothing can be decided on yet, because the constraint is being compiled."""
        return self.compilation is not None and not self.compilation.done()

    @property
    def matcher(self) -> GrammarMatcher | None:
        """Follows the generated tokens, once nothing is awaited; None where the constraint cannot be followed."""
        return self.compilation.result() if self.compilation is not None else None

    @property
    def plain_greedy(self) -> bool:
        """Whether the model's most probable tokens decide, so that nobody needs its logits."""
        return self.sampling.plain_greedy and self.constraint is None


class SlotTable:
    """Tenancies by slot, mirrored into the arena's batch state for the drafter."""

    def __init__(self, arena: Arena, num_blocks: int, block_size: int, *, prefix_cache: bool = True) -> None:
        """``prefix_cache``: whether blocks are found again by their tokens."""
        self._leases, self._cached = numbers(arena, SLOT_LEASES), numbers(arena, SLOT_CACHED)
        self._block_tables = numbers(arena, BLOCK_TABLES)
        self._tokens, self._prompts = numbers(arena, SLOT_TOKENS), numbers(arena, SLOT_PROMPTS)
        self._block_size = block_size
        self._prefix_cache = prefix_cache
        self._blocks = PrefixBlocks(num_blocks, keep=prefix_cache)
        self._tenancies: dict[int, Tenancy] = {}
        self._leases.fill(0)
        self._cached.fill(0)
        self._block_tables.fill(-1)

    @property
    def free_blocks(self) -> int:
        """KV blocks that nobody holds."""
        return self._blocks.free_blocks

    def get(self, slot: int, lease: int) -> Tenancy | None:
        """The tenancy ``lease`` of ``slot``; None if it is not the current one."""
        self._check(slot)
        tenancy = self._tenancies.get(slot)
        return tenancy if tenancy is not None and tenancy.lease == lease else None

    def admit(self, admission: Admission) -> bool:
        """Begin a tenancy, ending an older one; repeating the current one changes nothing. False: it is stale."""
        self._check(admission.slot)
        last = int(self._leases[admission.slot])
        current = self._tenancies.get(admission.slot)
        if current is not None and current.lease == admission.lease:
            return True
        if admission.lease <= abs(last):
            return False
        if current is not None:
            self.release(Release(slot=admission.slot, lease=current.lease))
        tenancy = self._tenancies[admission.slot] = Tenancy(
            admission.lease, admission.sampling, admission.prompt_len, admission.constraint,
            root=root_hash(admission.cache_salt))
        self._prompts[admission.slot] = admission.prompt_len
        self._leases[admission.slot] = admission.lease
        if self._prefix_cache and admission.token_ids:
            self._reuse(tenancy, admission)
        return True

    def release(self, release: Release) -> None:
        """End a tenancy; one that is not current is left alone."""
        tenancy = self.get(release.slot, release.lease)
        if tenancy is None:
            return
        if tenancy.compilation is not None:
            tenancy.compilation.cancel()
        self._blocks.release(tenancy.blocks)
        del self._tenancies[release.slot]
        # The negative lease remembers the last tenancy and matches no batch.
        self._leases[release.slot] = -release.lease
        self._cached[release.slot] = 0
        self._block_tables[release.slot].fill(-1)

    def reserve(self, slot: int, tenancy: Tenancy, positions: int) -> bool:
        """Make sure that ``positions`` positions have blocks; False when there are not enough."""
        missing = -(-positions // self._block_size) - len(tenancy.blocks)
        if missing <= 0:
            return True
        before = len(tenancy.blocks)
        if not self._blocks.extend(tenancy.blocks, missing):
            return False
        self._enter_blocks(slot, tenancy, before)
        return True

    def reserved_len(self, tenancy: Tenancy) -> int:
        """Positions that have blocks."""
        return len(tenancy.blocks) * self._block_size

    def set_cached(self, slot: int, tenancy: Tenancy, length: int) -> None:
        """State how many cached positions are valid, their tokens being entered."""
        tenancy.cached_len = length
        self._cached[slot] = length
        if self._prefix_cache:
            self._name_blocks(slot, tenancy)

    def enter_tokens(self, slot: int, start: int, token_ids: Sequence[int]) -> None:
        """Note the tokens at positions ``start…``; those of rejected drafts are overwritten, as their entries are."""
        self._tokens[slot, start : start + len(token_ids)] = token_ids

    def history(self, slot: int, length: int) -> Tensor:
        """The first ``length`` tokens that were entered: int64 ``[length]``."""
        return torch.from_numpy(self._tokens[slot, :length].astype(np.int64))

    def _reuse(self, tenancy: Tenancy, admission: Admission) -> None:
        """Begin with the blocks that have the first tokens already."""
        names = prefix_hashes(admission.token_ids, self._block_size, admission.cache_salt)
        tenancy.blocks = self._blocks.take(names)
        tenancy.block_names = names[: len(tenancy.blocks)]
        tenancy.reused_len = self.reserved_len(tenancy)
        self._enter_blocks(admission.slot, tenancy, 0)
        self.enter_tokens(admission.slot, 0, admission.token_ids[: tenancy.reused_len])
        self.set_cached(admission.slot, tenancy, tenancy.reused_len)

    def _enter_blocks(self, slot: int, tenancy: Tenancy, first: int) -> None:
        """Tell the drafter of a tenancy's blocks from the ``first`` on."""
        for index in range(first, len(tenancy.blocks)):
            self._block_tables[slot, index] = tenancy.blocks[index]

    def _name_blocks(self, slot: int, tenancy: Tenancy) -> None:
        """Name the blocks that have become full: nothing is written to them any more."""
        names, size = tenancy.block_names, self._block_size
        for index in range(len(names), tenancy.cached_len // size):
            tokens = self._tokens[slot, index * size : (index + 1) * size].tolist()
            names.append(block_hash(names[-1] if names else tenancy.root, tokens))
            self._blocks.name(tenancy.blocks[index], names[-1])

    def _check(self, slot: int) -> None:
        if not 0 <= slot < len(self._leases):
            raise ContractViolation(f"slot {slot} does not exist; there are {len(self._leases)}")
