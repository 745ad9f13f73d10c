"""Streams and blocks made by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.serving.load_generator import GeneratedLoad
from benchmarks.serving.stream_record import StreamRecord


def stream(
    deliveries: Iterable[tuple[float, int]], *, due_s: float = 0.0, digest: str = "text", server_s: float = 1.0,
    call_s: float = 0.9, rpc_s: float = 0.1,
) -> StreamRecord:
    """A stream to which so many tokens came at these times."""
    return StreamRecord(
        due_s=due_s, sent_s=due_s, deliveries=tuple(deliveries), prompt_tokens=3, digest=digest, rounds=2, drafted=4,
        accepted=3, server_s=server_s, call_s=call_s, rpc_s=rpc_s)


def even_stream(tokens: int, *, start: float = 0.0, every: float = 1.0) -> StreamRecord:
    """One token at a time, from ``start`` on."""
    return stream([(start + index * every, 1) for index in range(tokens)])


def block(streams: Sequence[StreamRecord]) -> GeneratedLoad:
    """A block of streams."""
    return GeneratedLoad(streams=tuple(streams), cpu_s=0.01)
