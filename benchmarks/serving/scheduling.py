"""What a round of the coordinator has besides its calls to the workers.

Of a stream that came first of many, and so waited for nobody, every second from admission to its last token belongs to
a round: it is in a draft or verify call, or the coordinator is between two of them (committing, detokenising, handing
out, admitting, choosing draft lengths, building batches). Inside the calls, what the workers did not work is RPC.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.serving.load_generator import GeneratedLoad


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundShares:
    """Shares of the time of all rounds of one stream."""

    rounds: int
    round_s: float
    """Seconds of a round, on average."""
    scheduling: float
    """Between the workers' answers and the next calls."""
    rpc: float
    """In calls, but not at work."""


def round_shares(load: GeneratedLoad) -> RoundShares:
    """Of the first stream of a load whose streams came all at once to an idle server."""
    first = min(load.streams, key=lambda stream: stream.sent_s)
    return RoundShares(
        rounds=first.rounds, round_s=first.server_s / first.rounds, scheduling=1 - first.call_s / first.server_s,
        rpc=first.rpc_s / first.server_s)
