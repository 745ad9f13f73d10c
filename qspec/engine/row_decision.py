"""What stands of one sequence's drafts, by the rows that were computed for it.

Adjustments first, then the grammar's mask, then filters and the acceptance rule: a row of the target becomes here what
tokens are drawn from, each with the history that it will have once it is committed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qspec.acceptance import decide, decide_greedy
from qspec.engine.batch_plan import Work
from qspec.engine.forward import DecidingForward
from qspec.engine.slots import Tenancy
from qspec.grammar_matcher import GrammarMatcher
from qspec.interfaces import SlotOutcome, Verification
from qspec.kernels.triton.row_draws import RowDraw, RowVerdict
from qspec.logit_adjustment import adjust
from qspec.target_mask import mask_target


@dataclass(frozen=True, slots=True)
class RowDecision:
    """``accepted`` drafts stand; ``token_ids`` are these and, but in a dead end, the recovered or bonus token."""

    accepted: int
    token_ids: tuple[int, ...]
    outcome: SlotOutcome = SlotOutcome.OK


def decide_greedily(drafts: Sequence[int], tokens: Sequence[int]) -> RowDecision:
    """Decide on k drafts by the target's most probable tokens after each, where nothing else is asked for."""
    greedy = decide_greedy(drafts, tokens)
    return RowDecision(greedy.accepted, (*drafts[: greedy.accepted], greedy.next_token))


def decide_rows(
    verification: Verification, tenancy: Tenancy, history: Tensor, draft_probs: Tensor, rows: Tensor
) -> RowDecision:
    """Decide on k drafts.

    Args:
        verification: the drafts, and how many tokens were committed before them.
        tenancy: how its tokens are drawn; with the matcher of its constraint, if it has one.
        history: int64 ``[committed + k]``, the tokens, drafts included.
        draft_probs: ``[>= k, vocab]``.
        rows: the target's logits, ``[k + 1, vocab]``.
    """
    drafts, length, sampling = verification.draft_tokens, verification.committed_len, tenancy.sampling
    logits, dead_row = adjust(rows, sampling, history, tenancy.prompt_len), None
    if tenancy.constraint is not None:
        if tenancy.matcher is None:
            return RowDecision(0, (), SlotOutcome.DEAD_END)
        generated = history[tenancy.prompt_len :].tolist()
        logits, dead_row = _constrain(logits, rows, tenancy.matcher, generated, len(drafts))
    if dead_row == 0:
        return RowDecision(0, (), SlotOutcome.DEAD_END)
    decision = decide(drafts, draft_probs, logits, sampling, length)
    if dead_row is not None and decision.accepted >= dead_row:  # as without drafts: what led there stands
        return RowDecision(dead_row, drafts[:dead_row], SlotOutcome.DEAD_END)
    return RowDecision(decision.accepted, (*drafts[: decision.accepted], decision.next_token))


def decide_by_verdicts(drafts: Sequence[int], verdicts: Sequence[RowVerdict]) -> RowDecision:
    """Decide on k drafts by what the k + 1 rows said: up to the first whose draft does not stand."""
    accepted = next((index for index in range(len(drafts)) if not verdicts[index].stands), len(drafts))
    return RowDecision(accepted, (*drafts[:accepted], verdicts[accepted].token))


def decided_rows(works: Sequence[Work], some: Sequence[Work]) -> list[int]:
    """Indices of the rows that ``some`` of the ``works`` of a pass are decided by."""
    slots, end = {work.slot for work in some}, 0
    rows: list[int] = []
    for work in works:
        end += len(work.token_ids)
        if work.verification is not None and work.slot in slots:
            rows.extend(range(end - len(work.verification.draft_tokens) - 1, end))
    return rows


def row_draws(works: Sequence[Work], forward: DecidingForward, draft_length: int) -> list[RowDraw | None]:
    """What the rows of ``works`` are asked; None for those that nothing is decided by, and for the host's.

    ``draft_length``: draft distributions of a slot in the arena.
    """
    draws: list[RowDraw | None] = []
    for work in works:
        verification, tenancy = work.verification, work.tenancy
        if verification is None or tenancy is None or tenancy.constraint is not None or not forward.decides(
                tenancy.sampling):
            draws += [None] * len(work.token_ids)
            continue
        drafts, first = verification.draft_tokens, work.slot * draft_length
        draws += [None] * (len(work.token_ids) - len(drafts) - 1)
        draws += [RowDraw(sampling=tenancy.sampling, drafted=token, distribution=first + index)
                  for index, token in enumerate(drafts)]
        draws.append(RowDraw(sampling=tenancy.sampling))
    return draws


def _constrain(
    adjusted: Tensor, logits: Tensor, matcher: GrammarMatcher, generated: list[int], drafted: int
) -> tuple[Tensor, int | None]:
    """The masked logits, and the first row that nothing can follow; ``generated`` ends with the drafts."""
    committed = len(generated) - drafted
    masks = matcher.masks(generated[:committed], generated[committed:])
    return mask_target(adjusted, logits, torch.from_numpy(masks.allowed)), masks.dead_row
