"""A draft call as the loop sees it: whether what comes is an answer, and what it tells of the work.

A drafter may die at any moment and is believed nothing: drafts that were not asked for, or that are no tokens, would
end the verifier's stream instead of its own.
"""

from __future__ import annotations

from qspec.errors import ContractViolation
from qspec.interfaces import DraftAnswer, DraftBatch


def check_drafts(answer: DraftAnswer, batch: DraftBatch, vocab_size: int) -> None:
    """Raise ``ContractViolation`` unless ``answer`` can be used: one result for each of the items of ``batch``."""
    if answer.round != batch.round or len(answer.results) != len(batch.items):
        raise ContractViolation("the drafter answered another question")
    for item, result in zip(batch.items, answer.results, strict=True):
        if (result.slot, result.lease) != (item.slot, item.lease):
            raise ContractViolation("the drafter answered another question")
        usable = all(0 <= token < vocab_size for token in result.draft_tokens)
        if len(result.draft_tokens) > item.draft_length or not usable:
            raise ContractViolation("the drafter drafted too many tokens or such as do not exist")


def sequences_fed(answer: DraftAnswer) -> list[int]:
    """How many sequences each step of an answered call fed: a distribution that was not drawn from took a step, too."""
    steps = [max(len(result.draft_tokens), len(result.confidences)) for result in answer.results]
    return [sum(count > step for count in steps) for step in range(max(steps, default=0))]
