"""Who wants to know what becomes of requests: the metrics, the log and the traces, told in one place.

Of a request it tells ids, counts, times and one word for its end. Never a prompt or a text, nor an error's own words,
which may quote them.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from coordinator.callers import client_of
from coordinator.metrics.request_metrics import RequestMetrics
from coordinator.outcome import reason_of
from coordinator.requests import id_problem
from coordinator.stream import Stream
from coordinator.tracing.tracer import CallTrace, Tracer, Untraced
from qspec.errors import InvalidInput, Unauthenticated

logger = logging.getLogger("qspec.requests")


class Telemetry:
    """See the module; for the event loop."""

    def __init__(self, tracer: Tracer | None = None) -> None:
        self.requests = RequestMetrics()
        self.tracer = tracer or Untraced()

    @contextlib.contextmanager
    def admitting(self, request_id: str, trace: CallTrace) -> Iterator[None]:
        """While a request is looked at and let in; what is raised is its refusal."""
        try:
            yield
        except BaseException as error:
            reason = reason_of(error)
            self.requests.request_refused(reason)
            trace.refused(reason)
            fields = [violation.field for violation in error.violations] if isinstance(error, InvalidInput) else []
            named = request_id if id_problem(request_id) is None else None
            _log("request refused", request_id=named, reason=reason, fields=",".join(fields) or None)
            raise

    def call_unauthenticated(self, method: str, peer: str) -> None:
        """A call of any method had no key that is known; nothing of it was read. ``peer`` is gRPC's."""
        reason = reason_of(Unauthenticated())
        self.requests.request_refused(reason)
        _log("request refused", client=client_of((), peer), method=method, reason=reason)

    def text_ended(self, stream: Stream) -> None:
        """A text has left the engine, for whatever reason there was."""
        sequence, ending = stream.generation.sequence, stream.ending
        if ending is not None:
            outcome = ending.reason.value
            self.requests.text_finished(outcome, ending.usage.total_s)
        else:
            outcome = reason_of(stream.error)
            self.requests.text_failed(outcome)
        stream.trace.text_ended(stream)
        times, stats = stream.generation.times, sequence.stats
        _log(
            "request ended", request_id=stream.request_id, client=stream.client, choice=sequence.sampling.choice,
            outcome=outcome, prompt_tokens=sequence.prompt_len,
            completion_tokens=len(sequence.tokens) - sequence.prompt_len, queue_s=_seconds(times.queue_s),
            time_to_first_token_s=_seconds(times.time_to_first_token_s),
            total_s=_seconds(None if ending is None else ending.usage.total_s),
            rounds=stats.rounds, drafted=stats.drafted, accepted=stats.accepted,
            recomputations=max(stats.recomputations, 0),
        )


def _log(event: str, **facts: object) -> None:
    if logger.isEnabledFor(logging.INFO):
        logger.info(event, extra={"facts": {name: fact for name, fact in facts.items() if fact is not None}})


def _seconds(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
