"""Log-probabilities as messages; see ``qspec.rpc.codec``."""

from __future__ import annotations

from collections.abc import Iterable

from qspec.interfaces import TokenLogprobs
from qspec.rpc.codec import require
from qspec.v1 import types_pb2


def logprobs_to_pb(items: Iterable[TokenLogprobs]) -> list[types_pb2.TokenLogprobs]:
    """Encode; what torch computes in float32 keeps its bits."""
    return [
        types_pb2.TokenLogprobs(logprob=each.logprob, top_token_ids=each.top_token_ids, top_logprobs=each.top_logprobs)
        for each in items
    ]


def logprobs_from_pb(messages: Iterable[types_pb2.TokenLogprobs]) -> tuple[TokenLogprobs, ...]:
    """Decode."""
    found = []
    for message in messages:
        require(len(message.top_token_ids) == len(message.top_logprobs), "a top token has no log-probability")
        found.append(TokenLogprobs(
            logprob=message.logprob, top_token_ids=tuple(message.top_token_ids),
            top_logprobs=tuple(message.top_logprobs)))
    return tuple(found)
