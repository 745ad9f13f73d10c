"""A draft call as the loop makes it: the question, and whether what comes is an answer to it.

A drafter may die at any moment and is believed nothing: drafts that were not asked for, or that are no tokens, would
end the verifier's stream instead of its own.
"""

from __future__ import annotations

from qspec.errors import ContractViolation
from qspec.interfaces import DraftAnswer, DraftBatch, Drafter


def ask_drafter(drafter: Drafter, batch: DraftBatch, vocab_size: int) -> DraftAnswer:
    """The answer to ``batch``, one result for each of its items.

    Raises what ``draft`` raises, and ``ContractViolation`` for an answer that cannot be used.
    """
    answer = drafter.draft(batch)
    if answer.round != batch.round or len(answer.results) != len(batch.items):
        raise ContractViolation("the drafter answered another question")
    for item, result in zip(batch.items, answer.results, strict=True):
        if (result.slot, result.lease) != (item.slot, item.lease):
            raise ContractViolation("the drafter answered another question")
        usable = all(0 <= token < vocab_size for token in result.draft_tokens)
        if len(result.draft_tokens) > item.draft_length or not usable:
            raise ContractViolation("the drafter drafted too many tokens or such as do not exist")
    return answer


def sequences_fed(answer: DraftAnswer) -> list[int]:
    """How many sequences each step of an answered call fed: a distribution that was not drawn from took a step, too."""
    steps = [max(len(result.draft_tokens), len(result.confidences)) for result in answer.results]
    return [sum(count > step for count in steps) for step in range(max(steps, default=0))]
