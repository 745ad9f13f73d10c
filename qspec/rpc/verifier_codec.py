"""The verifier's messages; see ``qspec.rpc.codec``."""

from __future__ import annotations

from qspec.interfaces import (
    Admission,
    PrefillChunk,
    Release,
    Verification,
    VerifierDescription,
    VerifyAnswer,
    VerifyBatch,
    VerifyResult,
)
from qspec.rpc.codec import (
    arena_from_pb,
    arena_to_pb,
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
from qspec.rpc.constraint_codec import constraint_from_pb, constraint_to_pb
from qspec.rpc.logprobs_codec import logprobs_from_pb, logprobs_to_pb
from qspec.rpc.sampling_codec import sampling_from_pb, sampling_to_pb
from qspec.v1 import verifier_pb2


@checked
def description_to_pb(about: VerifierDescription) -> verifier_pb2.DescribeResponse:
    """Encode."""
    return verifier_pb2.DescribeResponse(
        model=about.model, method=about.method, row_invariant=about.row_invariant, vocab_size=about.vocab_size,
        vocab_fingerprint=about.vocab_fingerprint, max_model_len=about.max_model_len, max_slots=about.max_slots,
        max_draft_length=about.max_draft_length, max_batch_rows=about.max_batch_rows, block_size=about.block_size,
        num_blocks=about.num_blocks, arena=arena_to_pb(about.arena), memory=memory_to_pb(about.memory),
        kernel=about.kernel,
        draft_quantization=about.draft_quantization,
        verify_quantization=about.verify_quantization,
        auto_reason=about.auto_reason,
        prefix_cache=about.prefix_cache,
        awaits_drafts=about.awaits_drafts,
        asked_ahead=about.asked_ahead,
    )


def description_from_pb(message: verifier_pb2.DescribeResponse) -> VerifierDescription:
    """Decode."""
    return VerifierDescription(
        model=message.model, method=message.method, row_invariant=message.row_invariant,
        vocab_size=message.vocab_size, vocab_fingerprint=message.vocab_fingerprint,
        max_model_len=message.max_model_len, max_slots=message.max_slots, max_draft_length=message.max_draft_length,
        max_batch_rows=message.max_batch_rows, block_size=message.block_size, num_blocks=message.num_blocks,
        arena=arena_from_pb(message.arena), memory=memory_from_pb(message.memory), kernel=message.kernel,
        draft_quantization=message.draft_quantization, verify_quantization=message.verify_quantization,
        auto_reason=message.auto_reason, prefix_cache=message.prefix_cache, awaits_drafts=message.awaits_drafts,
        asked_ahead=message.asked_ahead,
    )


@checked
def verify_batch_to_pb(batch: VerifyBatch) -> verifier_pb2.VerifyRequest:
    """Encode."""
    return verifier_pb2.VerifyRequest(
        epoch=batch.epoch, round=batch.round,
        releases=[verifier_pb2.Release(slot=r.slot, lease=r.lease) for r in batch.releases],
        admissions=[
            verifier_pb2.Admission(
                slot=a.slot, lease=a.lease, sampling=sampling_to_pb(a.sampling), prompt_len=a.prompt_len,
                token_ids=a.token_ids, cache_salt=a.cache_salt, **constraint_to_pb(a.constraint))
            for a in batch.admissions
        ],
        prefill_chunks=[
            verifier_pb2.PrefillChunk(
                slot=c.slot, lease=c.lease, start=c.start, token_ids=c.token_ids, next_token=c.next_token)
            for c in batch.prefill_chunks
        ],
        verifications=[
            verifier_pb2.Verification(
                slot=v.slot, lease=v.lease, committed_len=v.committed_len, pending_token=v.pending_token,
                draft_tokens=v.draft_tokens, awaited_drafts=v.awaited_drafts, after_round=v.after_round,
                end_len=v.end_len,
            )
            for v in batch.verifications
        ],
        time_left_s=batch.time_left_s,
    )


def verify_batch_from_pb(message: verifier_pb2.VerifyRequest) -> VerifyBatch:
    """Decode."""
    for verification in message.verifications:
        require(verification.committed_len >= 1, "committed_len must be at least 1: the pending token is committed")
        require(not (verification.awaited_drafts and verification.draft_tokens), "drafts are either given or awaited")
    return VerifyBatch(
        epoch=message.epoch, round=message.round,
        releases=tuple(Release(slot=r.slot, lease=r.lease) for r in message.releases),
        admissions=tuple(
            Admission(
                slot=a.slot, lease=a.lease, sampling=sampling_from_pb(a.sampling), prompt_len=a.prompt_len,
                constraint=constraint_from_pb(a), token_ids=tuple(a.token_ids), cache_salt=a.cache_salt)
            for a in message.admissions
        ),
        prefill_chunks=tuple(
            PrefillChunk(
                slot=c.slot, lease=c.lease, start=c.start, token_ids=tuple(c.token_ids),
                next_token=c.next_token if c.HasField("next_token") else None)
            for c in message.prefill_chunks
        ),
        verifications=tuple(
            Verification(
                slot=v.slot, lease=v.lease, committed_len=v.committed_len, pending_token=v.pending_token,
                draft_tokens=tuple(v.draft_tokens), awaited_drafts=v.awaited_drafts, after_round=v.after_round,
                end_len=v.end_len,
            )
            for v in message.verifications
        ),
        time_left_s=time_left_from_pb(message.time_left_s if message.HasField("time_left_s") else None),
    )


@checked
def verify_answer_to_pb(answer: VerifyAnswer) -> verifier_pb2.VerifyResponse:
    """Encode."""
    return verifier_pb2.VerifyResponse(
        epoch=answer.epoch, round=answer.round, free_blocks=answer.free_blocks, timings=timings_to_pb(answer.timings),
        prefill_rows=answer.prefill_rows, waited_ns=answer.waited_ns, idle_ns=answer.idle_ns,
        results=[
            verifier_pb2.VerifyResult(
                slot=r.slot, lease=r.lease, outcome=outcome_to_pb(r.outcome), accepted=r.accepted,
                token_ids=r.token_ids, cached_len=r.cached_len, reserved_len=r.reserved_len,
                logprobs=logprobs_to_pb(r.logprobs), prompt_logprobs=logprobs_to_pb(r.prompt_logprobs),
                reused_len=r.reused_len, drafted=r.drafted,
            )
            for r in answer.results
        ],
    )


def verify_answer_from_pb(message: verifier_pb2.VerifyResponse) -> VerifyAnswer:
    """Decode; no more drafts can have been accepted than tokens were committed."""
    results = tuple(
        VerifyResult(
            slot=r.slot, lease=r.lease, outcome=outcome_from_pb(r.outcome), accepted=r.accepted,
            token_ids=tuple(r.token_ids), cached_len=r.cached_len, reserved_len=r.reserved_len,
            logprobs=logprobs_from_pb(r.logprobs), prompt_logprobs=logprobs_from_pb(r.prompt_logprobs),
            reused_len=r.reused_len, drafted=r.drafted,
        )
        for r in message.results
    )
    require(all(len(r.logprobs) in (0, len(r.token_ids)) for r in results), "a token has no log-probability")
    require(all(r.accepted <= len(r.token_ids) for r in results), "more drafts accepted than tokens committed")
    return VerifyAnswer(
        epoch=message.epoch, round=message.round, results=results, free_blocks=message.free_blocks,
        timings=timings_from_pb(message.timings), prefill_rows=message.prefill_rows, waited_ns=message.waited_ns,
        idle_ns=message.idle_ns,
    )
