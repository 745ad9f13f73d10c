"""Hypothesis strategies for everything that crosses the wire between coordinator and workers."""

from __future__ import annotations

from hypothesis import strategies as st

from qspec.constraint import Constraint, ConstraintKind
from qspec.interfaces import (
    AcceptanceRule,
    Admission,
    ArenaBackend,
    ArenaDescriptor,
    DraftAnswer,
    DraftBatch,
    DrafterDescription,
    DraftItem,
    DraftResult,
    EarlyStop,
    MemoryItem,
    PrefillChunk,
    Region,
    RegionWriter,
    Release,
    Sampling,
    SlotOutcome,
    StageTimings,
    TokenLogprobs,
    Verification,
    VerifierDescription,
    VerifyAnswer,
    VerifyBatch,
    VerifyResult,
)

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
positive = st.integers(1, 2**32 - 1)
text = st.text(max_size=8)
tokens = st.lists(u32, max_size=4).map(tuple)
outcomes = st.sampled_from(SlotOutcome)
timings = st.builds(StageTimings, prepare_ns=u64, forward_ns=u64, sample_ns=u64, total_ns=u64)
memory = st.lists(
    st.builds(MemoryItem, name=text, bytes=u64, shared=st.booleans(), mapped_file=st.booleans()), max_size=2,
).map(tuple)
samplings = st.builds(
    Sampling,
    temperature=st.just(0.0) | st.floats(1e-3, 1e6), top_k=u32, top_p=st.floats(0, 1, exclude_min=True),
    min_p=st.floats(0, 1), typical_p=st.floats(0, 1, exclude_min=True), seed=u64, choice=st.integers(0, 2**16 - 1),
    rule=st.sampled_from(AcceptanceRule), repetition_penalty=st.floats(0.01, 100), presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2), min_tokens=u32, ending_token_ids=tokens,
    logprobs=st.none() | u32, prompt_logprobs=st.none() | u32,
    logit_bias=st.dictionaries(u32, st.floats(-100, 100), max_size=3).map(lambda biases: tuple(sorted(biases.items()))),
)
regions = st.lists(
    st.builds(
        Region, name=text, dtype=text, shape=st.lists(u64, max_size=3).map(tuple), offset=u32,
        writer=st.sampled_from(RegionWriter), file=st.integers(0, 2),
    ),
    max_size=3, unique_by=lambda region: region.name,
).map(tuple)
arenas = st.builds(
    ArenaDescriptor,
    backend=st.sampled_from(ArenaBackend), device_uuid=text, handle=st.binary(max_size=64), reference=text,
    size=st.integers(2**32, 2**64 - 1), epoch=u64, fingerprint=text, regions=regions,
    file_sizes=st.tuples(*[st.integers(2**32, 2**64 - 1)] * 2),
)
verifier_descriptions = st.builds(
    VerifierDescription,
    model=text, method=text, row_invariant=st.booleans(), vocab_size=u32, vocab_fingerprint=text, max_model_len=u32,
    max_slots=u32, max_draft_length=u32, max_batch_rows=u32, block_size=u32, num_blocks=u32, arena=arenas,
    memory=memory, kernel=text, prefix_cache=st.booleans(), awaits_drafts=st.booleans(), asked_ahead=st.booleans(),
)
drafter_descriptions = st.builds(DrafterDescription, epoch=u64, method=text, kernel=text, memory=memory)
finite = st.floats(allow_nan=False, allow_infinity=False)
early_stops = st.builds(EarlyStop, least_drawn=finite, least_fed=finite, intercept=finite, slope=finite)
times_left = st.none() | st.floats(0, 1e9)
draft_batches = st.builds(
    DraftBatch, epoch=u64, round=u64, time_left_s=times_left,
    items=st.lists(
        st.builds(
            DraftItem, slot=u32, lease=u64, committed_len=positive, pending_token=u32, draft_length=positive,
            sampling=samplings, early_stop=st.none() | early_stops, after_round=u64, end_len=u32,
        ),
        max_size=3,
    ).map(tuple),
)
draft_results = st.builds(
    DraftResult, slot=u32, lease=u64, outcome=st.just(SlotOutcome.OK), draft_tokens=tokens,
    confidences=st.lists(st.floats(0, 1), max_size=3).map(tuple),
)
stale_results = st.builds(
    DraftResult, slot=u32, lease=u64, outcome=st.just(SlotOutcome.STALE), draft_tokens=st.just(())
)
draft_answers = st.builds(
    DraftAnswer, epoch=u64, round=u64, timings=timings,
    results=st.lists(draft_results | stale_results, max_size=3).map(tuple),
)
verify_batches = st.builds(
    VerifyBatch, epoch=u64, round=u64, time_left_s=times_left,
    releases=st.lists(st.builds(Release, slot=u32, lease=u64), max_size=2).map(tuple),
    admissions=st.lists(
        st.builds(
            Admission, slot=u32, lease=u64, sampling=samplings, prompt_len=u32,
            constraint=st.none() | st.builds(Constraint, kind=st.sampled_from(ConstraintKind), text=text),
            token_ids=tokens, cache_salt=text),
        max_size=2,
    ).map(tuple),
    prefill_chunks=st.lists(
        st.builds(PrefillChunk, slot=u32, lease=u64, start=u32, token_ids=tokens, next_token=st.none() | u32),
        max_size=2,
    ).map(tuple),
    verifications=st.lists(
        st.builds(
            Verification, slot=u32, lease=u64, committed_len=positive, pending_token=u32, draft_tokens=tokens,
            after_round=u64, end_len=u32,
        ) | st.builds(
            Verification, slot=u32, lease=u64, committed_len=positive, pending_token=u32, draft_tokens=st.just(()),
            awaited_drafts=u32, after_round=u64, end_len=u32,
        ),
        max_size=2,
    ).map(tuple),
)
logprob = st.floats(max_value=0, allow_nan=False, width=32)


def logprobs(counts: st.SearchStrategy[int]) -> st.SearchStrategy[tuple[TokenLogprobs, ...]]:
    """Of so many tokens, with any number of best ones."""
    one = st.integers(0, 3).flatmap(lambda top: st.builds(
        TokenLogprobs, logprob=logprob, top_token_ids=st.tuples(*[u32] * top),
        top_logprobs=st.tuples(*[logprob] * top)))
    return counts.flatmap(lambda count: st.tuples(*[one] * count))


verify_results = tokens.flatmap(lambda token_ids: st.builds(
    VerifyResult, slot=u32, lease=u64, outcome=outcomes, accepted=st.integers(0, len(token_ids)),
    token_ids=st.just(token_ids), cached_len=u32, reserved_len=u32, prompt_logprobs=logprobs(st.integers(0, 3)),
    logprobs=logprobs(st.sampled_from([0, len(token_ids)])), reused_len=u32,
))
verify_answers = st.builds(
    VerifyAnswer, epoch=u64, round=u64, results=st.lists(verify_results, max_size=3).map(tuple), free_blocks=u32,
    timings=timings, prefill_rows=u32, waited_ns=u64, idle_ns=u64,
)
