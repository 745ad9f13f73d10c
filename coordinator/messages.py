"""From the coordinator's own data to the messages of ``qspec.v1.GenerationService``."""

from __future__ import annotations

from collections.abc import Iterator

from coordinator.generation import Ending, Piece
from coordinator.pair import Pair, PairState
from coordinator.requests import MAX_STOP_LENGTH, MAX_STOP_TOKENS, MAX_STOPS
from coordinator.sampling_fields import MAX_BIASES, RANGES
from coordinator.serving import ServerState, Serving
from coordinator.version import package_version
from qspec.constraint import MAX_CONSTRAINT_BYTES
from qspec.interfaces import MemoryItem
from qspec.rpc.logprobs_codec import logprobs_to_pb
from qspec.rpc.options import MAX_REQUEST_BYTES
from qspec.sequence import FinishReason
from qspec.v1 import generation_pb2 as pb

_FINISH_REASONS = {
    FinishReason.END_OF_SEQUENCE: pb.FINISH_REASON_END_OF_SEQUENCE,
    FinishReason.STOP_STRING: pb.FINISH_REASON_STOP_STRING,
    FinishReason.STOP_TOKEN: pb.FINISH_REASON_STOP_TOKEN,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.DEAD_END: pb.FINISH_REASON_DEAD_END,
}
LOGPROBS_AT_ONCE = 1024
"""Prompt tokens whose log-probabilities are in one message."""
_STATES = {
    ServerState.LOADING: pb.SERVER_STATE_LOADING,
    ServerState.SERVING: pb.SERVER_STATE_SERVING,
    ServerState.DRAINING: pb.SERVER_STATE_DRAINING,
}
_PAIR_STATES = {
    PairState.STARTING: pb.PAIR_STATE_STARTING,
    PairState.SERVING: pb.PAIR_STATE_SERVING,
    PairState.LOST: pb.PAIR_STATE_LOST,
    PairState.DRAINING: pb.PAIR_STATE_DRAINING,
    PairState.FAILED: pb.PAIR_STATE_FAILED,
}


def piece_messages(piece: Piece, request_id: str = "") -> Iterator[pb.GenerateResponse]:
    """One piece of a stream; the first is given the request's id.

    A long prompt's log-probabilities go ahead in messages of their own: a message of gRPC holds 4 MB.
    """
    prompt = logprobs_to_pb(piece.prompt_logprobs)
    for start in range(0, len(prompt) - LOGPROBS_AT_ONCE, LOGPROBS_AT_ONCE):
        yield pb.GenerateResponse(
            prompt_logprobs=prompt[start : start + LOGPROBS_AT_ONCE], request_id=request_id, choice=piece.choice)
        request_id = ""
    message = pb.GenerateResponse(
        text=piece.text, token_ids=piece.token_ids, request_id=request_id, logprobs=logprobs_to_pb(piece.logprobs),
        prompt_logprobs=prompt[(len(prompt) - 1) // LOGPROBS_AT_ONCE * LOGPROBS_AT_ONCE :] if prompt else (),
        prompt_token_ids=piece.prompt_token_ids, choice=piece.choice)
    if piece.ending is not None:
        _add_ending(message, piece.ending)
    yield message


def info_message(serving: Serving) -> pb.GetServerInfoResponse:
    """What runs here."""
    pairs = serving.pairs
    message = pb.GetServerInfoResponse(
        version=package_version(),
        state=_STATES[serving.state],
        model=serving.model,
        max_waiting=serving.max_waiting,
        verifier_restarts=sum(pair.verifier_restarts for pair in pairs),
        drafter_restarts=sum(pair.drafter_restarts for pair in pairs),
        pairs=map(_pair_message, pairs),
    )
    if (router := serving.router) is not None:
        message.running, message.waiting = router.running, router.waiting
        message.max_buffered_tokens = router.max_buffered_tokens
        message.free_blocks = router.free_blocks
    if (verifier := serving.verifier) is not None:
        message.verify_method = verifier.method
        message.verify_kernel = verifier.kernel
        message.max_model_len = verifier.max_model_len
        message.max_draft_length = serving.limits.max_draft_length
        message.row_invariant = verifier.row_invariant
        message.block_size = verifier.block_size
        message.vocab_size = verifier.vocab_size
        message.prefix_cache = verifier.prefix_cache
        message.max_batch_rows = verifier.max_batch_rows
        message.auto_reason = verifier.auto_reason
    for pair in pairs:
        if (engine := pair.engine) is not None:
            message.preemptions += engine.preemptions
            if not message.verify_s:
                message.verify_s[:] = engine.costs.verify_s
                message.draft_step_s = engine.costs.draft_step_s
        if pair.verifier is not None:
            message.max_slots += pair.verifier.max_slots
            message.num_blocks += pair.verifier.num_blocks
            _add_memory(message, "verifier", pair.verifier.memory)
        if pair.drafter is not None:
            _add_memory(message, "drafter", pair.drafter.memory)
    drafters = [pair.drafter for pair in pairs if pair.drafter is not None]
    message.draft_method = ", ".join(dict.fromkeys(drafter.method for drafter in drafters))
    message.draft_kernel = ", ".join(dict.fromkeys(drafter.kernel for drafter in drafters))
    message.request_limits.CopyFrom(_limits_message(serving.max_waiting + message.max_slots))
    return message


def _limits_message(places: int) -> pb.RequestLimits:
    """``places``: of running and waiting requests."""
    return pb.RequestLimits(
        max_texts=min(int(RANGES["n"].high), places), max_stop_strings=MAX_STOPS, max_stop_length=MAX_STOP_LENGTH,
        max_stop_tokens=MAX_STOP_TOKENS, max_logit_biases=MAX_BIASES, max_logprobs=int(RANGES["logprobs"].high),
        max_constraint_bytes=MAX_CONSTRAINT_BYTES, max_request_bytes=MAX_REQUEST_BYTES)


def _pair_message(pair: Pair) -> pb.PairInfo:
    message = pb.PairInfo(
        name=pair.name, state=_PAIR_STATES[pair.state], detail=pair.detail,
        verifier_restarts=pair.verifier_restarts, drafter_restarts=pair.drafter_restarts)
    if (engine := pair.engine) is not None:
        message.running, message.waiting, message.free_blocks = engine.running, engine.waiting, engine.free_blocks
    if pair.verifier is not None:
        message.max_slots, message.num_blocks = pair.verifier.max_slots, pair.verifier.num_blocks
    if pair.drafter is not None:
        message.draft_method = pair.drafter.method
    return message


def _add_ending(message: pb.GenerateResponse, ending: Ending) -> None:
    message.finish_reason = _FINISH_REASONS[ending.reason]
    if ending.matched_stop is not None:
        message.matched_stop = ending.matched_stop
    if ending.matched_token is not None:
        message.matched_stop_token = ending.matched_token
    usage, stats = ending.usage, ending.stats
    message.usage.CopyFrom(pb.Usage(
        prompt_tokens=usage.prompt_tokens,
        cached_prompt_tokens=usage.cached_prompt_tokens,
        completion_tokens=usage.completion_tokens,
        time_to_first_token_s=usage.time_to_first_token_s,
        total_s=usage.total_s,
        tokens_per_second=usage.tokens_per_second,
    ))
    message.speculation.CopyFrom(pb.SpeculationStats(
        rounds=stats.rounds,
        drafted=stats.drafted,
        accepted=stats.accepted,
        accepted_per_position=stats.accepted_per_position,
        drafted_per_position=stats.drafted_per_position,
        rounds_per_draft_length=stats.rounds_per_draft_length,
        draft_s=stats.draft_s,
        verify_s=stats.verify_s,
        rpc_s=stats.rpc_s,
        round_total_s=stats.round_s,
        rounds_without_drafter=stats.rounds_without_drafter,
        recomputations=stats.recomputations,
    ))


def _add_memory(message: pb.GetServerInfoResponse, worker: str, items: tuple[MemoryItem, ...]) -> None:
    for item in items:
        owner = "arena" if item.shared else worker
        message.memory.add(
            owner=owner, name=item.name, bytes=item.bytes, shared=item.shared, mapped_file=item.mapped_file)
