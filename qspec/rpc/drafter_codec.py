"""The drafter's messages; see ``qspec.rpc.codec``."""

from __future__ import annotations

import math

from qspec.interfaces import (
    DraftAnswer,
    DraftBatch,
    DrafterDescription,
    DraftItem,
    DraftResult,
    EarlyStop,
    SlotOutcome,
    VerifierDescription,
)
from qspec.rpc.codec import (
    checked,
    memory_from_pb,
    memory_to_pb,
    outcome_from_pb,
    outcome_to_pb,
    require,
    time_left_from_pb,
    timings_from_pb,
    timings_to_pb,
)
from qspec.rpc.sampling_codec import sampling_from_pb, sampling_to_pb
from qspec.rpc.verifier_codec import description_from_pb, description_to_pb
from qspec.v1 import drafter_pb2


def attach_request_to_pb(verifier: VerifierDescription) -> drafter_pb2.AttachRequest:
    """Encode."""
    return drafter_pb2.AttachRequest(verifier=description_to_pb(verifier))


def attach_request_from_pb(message: drafter_pb2.AttachRequest) -> VerifierDescription:
    """Decode; a description that was not sent at all fails for its arena's unset backend."""
    return description_from_pb(message.verifier)


@checked
def attach_response_to_pb(drafter: DrafterDescription) -> drafter_pb2.AttachResponse:
    """Encode."""
    return drafter_pb2.AttachResponse(
        epoch=drafter.epoch, method=drafter.method, kernel=drafter.kernel, memory=memory_to_pb(drafter.memory)
    )


def attach_response_from_pb(message: drafter_pb2.AttachResponse) -> DrafterDescription:
    """Decode."""
    return DrafterDescription(
        epoch=message.epoch, method=message.method, kernel=message.kernel, memory=memory_from_pb(message.memory)
    )


def early_stop_to_pb(rule: EarlyStop | None) -> drafter_pb2.EarlyStop | None:
    """Encode; None is not sent."""
    if rule is None:
        return None
    return drafter_pb2.EarlyStop(
        least_drawn=rule.least_drawn, least_fed=rule.least_fed, intercept=rule.intercept, slope=rule.slope)


def early_stop_from_pb(message: drafter_pb2.EarlyStop) -> EarlyStop:
    """Decode."""
    rule = EarlyStop(
        least_drawn=message.least_drawn, least_fed=message.least_fed, intercept=message.intercept, slope=message.slope)
    numbers = (rule.least_drawn, rule.least_fed, rule.intercept, rule.slope)
    require(all(map(math.isfinite, numbers)), "early_stop needs finite numbers")
    return rule


@checked
def draft_batch_to_pb(batch: DraftBatch) -> drafter_pb2.DraftRequest:
    """Encode."""
    return drafter_pb2.DraftRequest(
        epoch=batch.epoch, round=batch.round,
        items=[
            drafter_pb2.DraftItem(
                slot=item.slot, lease=item.lease, committed_len=item.committed_len, pending_token=item.pending_token,
                draft_length=item.draft_length, sampling=sampling_to_pb(item.sampling),
                early_stop=early_stop_to_pb(item.early_stop), after_round=item.after_round, end_len=item.end_len,
            )
            for item in batch.items
        ],
        time_left_s=batch.time_left_s,
    )


def draft_batch_from_pb(message: drafter_pb2.DraftRequest) -> DraftBatch:
    """Decode."""
    for item in message.items:
        require(item.draft_length >= 1, "draft_length must be at least 1")
        require(item.committed_len >= 1, "committed_len must be at least 1: the pending token is committed")
    return DraftBatch(
        epoch=message.epoch, round=message.round,
        items=tuple(
            DraftItem(
                slot=item.slot, lease=item.lease, committed_len=item.committed_len, pending_token=item.pending_token,
                draft_length=item.draft_length, sampling=sampling_from_pb(item.sampling),
                early_stop=early_stop_from_pb(item.early_stop) if item.HasField("early_stop") else None,
                after_round=item.after_round, end_len=item.end_len,
            )
            for item in message.items
        ),
        time_left_s=time_left_from_pb(message.time_left_s if message.HasField("time_left_s") else None),
    )


@checked
def draft_answer_to_pb(answer: DraftAnswer) -> drafter_pb2.DraftResponse:
    """Encode."""
    return drafter_pb2.DraftResponse(
        epoch=answer.epoch, round=answer.round, timings=timings_to_pb(answer.timings),
        results=[
            drafter_pb2.DraftResult(
                slot=result.slot, lease=result.lease, outcome=outcome_to_pb(result.outcome),
                draft_tokens=result.draft_tokens, confidences=result.confidences,
            )
            for result in answer.results
        ],
    )


def draft_answer_from_pb(message: drafter_pb2.DraftResponse) -> DraftAnswer:
    """Decode; a stale slot has no drafts."""
    results = tuple(
        DraftResult(
            slot=result.slot, lease=result.lease, outcome=outcome_from_pb(result.outcome),
            draft_tokens=tuple(result.draft_tokens), confidences=tuple(result.confidences),
        )
        for result in message.results
    )
    require(all(0 <= c <= 1 for r in results for c in r.confidences), "a confidence is a probability")
    require(all(r.outcome is SlotOutcome.OK or not r.draft_tokens for r in results), "a stale slot has no drafts")
    return DraftAnswer(
        epoch=message.epoch, round=message.round, results=results, timings=timings_from_pb(message.timings)
    )
