"""Made-up samples whose times follow from what a step costs."""

from __future__ import annotations

from benchmarks.samples import Sample, Speculation

PREFILL_S, PLAIN_S, DRAFT_S, VERIFY_S, RPC_S = 0.5, 0.1, 0.02, 0.12, 0.001


def plain_sample(tokens: tuple[int, ...], *, step_s: float = PLAIN_S) -> Sample:
    """A text of one token per round."""
    decoded_s = (len(tokens) - 1) * step_s
    return _sample(tokens, decoded_s, Speculation(
        rounds=len(tokens), drafted=0, accepted=0, accepted_per_position=(), drafted_per_position=(),
        rounds_per_draft_length=(len(tokens),), draft_s=0.0, verify_s=PREFILL_S + decoded_s, rpc_s=len(tokens) * RPC_S,
        round_s=PREFILL_S + decoded_s,
    ))


def speculative_sample(tokens: tuple[int, ...], accepted: tuple[int, ...], *, draft_length: int) -> Sample:
    """A text whose rounds after the prefill each drafted ``draft_length`` tokens and accepted so many."""
    rounds = len(accepted)
    assert len(tokens) == 1 + sum(accepted) + rounds
    decoded_s = rounds * (draft_length * DRAFT_S + VERIFY_S)
    return _sample(tokens, decoded_s, Speculation(
        rounds=1 + rounds, drafted=rounds * draft_length, accepted=sum(accepted),
        accepted_per_position=tuple(sum(count > index for count in accepted) for index in range(draft_length)),
        drafted_per_position=(rounds,) * draft_length,
        rounds_per_draft_length=(1, *[0] * (draft_length - 1), rounds),
        draft_s=rounds * draft_length * DRAFT_S, verify_s=PREFILL_S + rounds * VERIFY_S, rpc_s=rounds * RPC_S,
        round_s=PREFILL_S + decoded_s,
    ))


def _sample(tokens: tuple[int, ...], decoded_s: float, stats: Speculation) -> Sample:
    return Sample(
        prompt_tokens=9, token_ids=tokens, first_token_s=PREFILL_S, total_s=PREFILL_S + decoded_s,
        wall_s=PREFILL_S + decoded_s, speculation=stats,
    )
