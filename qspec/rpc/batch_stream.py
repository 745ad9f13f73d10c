"""The client's side of a long-lived stream of batches, synchronous, because the decoding loop is a thread.

Several requests may be on their way; their answers come in the same order. A synchronous gRPC stream cannot be read
with a timeout, so a watchdog thread cancels the call of an answer that is late. It costs nothing per batch: it sleeps
for one timeout at a time, and a deadline set while it sleeps lies never before the moment at which it wakes.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

import grpc

from qspec.errors import WorkerLost
from qspec.rpc.errors import from_rpc_error

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_ResponseCo = TypeVar("_ResponseCo", covariant=True)


class StreamCall(Protocol[_ResponseCo]):
    """What a synchronous bidirectional gRPC call is to us."""

    def __next__(self) -> _ResponseCo:
        """The next response."""
        ...

    def cancel(self) -> bool:
        """Cancel the call."""
        ...


class PendingAnswer(Generic[_Response]):
    """A ``qspec.overlap.Pending`` that is received when it is asked for."""

    def __init__(self, receive: Callable[[], _Response], cancel: Callable[[], None]) -> None:
        self._receive = receive
        self._cancel = cancel

    def result(self) -> _Response:
        """See ``qspec.overlap.Pending``."""
        return self._receive()

    def cancel(self) -> None:
        """See ``qspec.overlap.Pending``."""
        self._cancel()


class BatchStream(Generic[_Request, _Response]):
    """Request and answer over one call, opened when first used and again after it was lost.

    Args:
        open_call: the stub's stream method.
        timeout_s: seconds within which each answer must be there.
        peer: who answers, for messages: "the drafter at unix:/…".
    """

    def __init__(
        self, open_call: Callable[[Iterator[_Request]], StreamCall[_Response]], *, timeout_s: float, peer: str
    ) -> None:
        self._open_call = open_call
        self._timeout_s = timeout_s
        self._peer = peer
        self._lock = threading.Lock()  # guards _call, _deadline and _late
        self._call: StreamCall[_Response] | None = None
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._deadline: float | None = None
        self._on_their_way = 0
        self._late = False
        self._closed = threading.Event()
        self._watchdog: threading.Thread | None = None

    def exchange(self, request: _Request) -> _Response:
        """Send a request and return its answer; raises what ``send`` and ``receive`` raise."""
        return self.receive(self.send(request))

    def send(self, request: _Request) -> StreamCall[_Response]:
        """Send a request; returns the call that its answer will come from, in the order of the requests.

        Raises ``WorkerLost`` when the stream is closed for good.
        """
        if self._closed.is_set():
            raise WorkerLost(f"the stream to {self._peer} is closed")
        call = self._arm()
        self._requests.put(request)
        return call

    def receive(self, call: StreamCall[_Response]) -> _Response:
        """The next answer of the call that a request went to.

        Raises what ``qspec.rpc.errors.from_rpc_error`` makes of the stream's status, ``WorkerLost`` when the answer is
        late, or when the call was lost before. The stream is gone then, and the next request opens a new one.
        """
        with self._lock:
            if self._call is not call:
                raise WorkerLost(f"the stream to {self._peer} is closed")
        try:
            response = next(call)
        except StopIteration:
            self._drop()
            raise WorkerLost(f"{self._peer} ended the stream") from None
        except grpc.RpcError as error:
            late = self._late
            self._drop()
            if late:
                raise WorkerLost(f"{self._peer} did not answer within {self._timeout_s:g} s") from None
            raise from_rpc_error(error, self._peer) from None
        except BaseException:  # KeyboardInterrupt in between: the answer would be taken for that of the next request
            self._drop()
            raise
        with self._lock:
            self._on_their_way -= 1
            self._deadline = time.monotonic() + self._timeout_s if self._on_their_way else None
            late = self._late
        if late:  # it came while the watchdog was cancelling; the answer is good, the stream is not
            self._drop()
        return response

    def drop(self, call: StreamCall[_Response] | None = None) -> None:
        """Cancel the stream, because its peer does not keep to the protocol or nobody waits for its answers; the next
        exchange opens a new one. With ``call`` only if it is the stream's."""
        with self._lock:
            if call is not None and self._call is not call:
                return
        self._drop()

    def close(self) -> None:
        """Cancel the stream for good."""
        self._closed.set()
        self._drop()
        if self._watchdog is not None:
            self._watchdog.join()

    def _arm(self) -> StreamCall[_Response]:
        with self._lock:
            if self._call is None:
                self._requests = queue.SimpleQueue()
                self._late = False
                self._call = self._open_call(iter(self._requests.get, None))
            if not self._on_their_way:
                self._deadline = time.monotonic() + self._timeout_s
            self._on_their_way += 1
            if self._watchdog is None:
                self._watchdog = threading.Thread(target=self._watch, name="stream-watchdog", daemon=True)
                self._watchdog.start()
            return self._call

    def _drop(self) -> None:
        with self._lock:
            call, self._call, self._deadline, self._on_their_way = self._call, None, None, 0
            self._requests.put(None)  # ends gRPC's request thread
        if call is not None:
            with contextlib.suppress(grpc.RpcError):
                call.cancel()

    def _watch(self) -> None:
        pause = self._timeout_s
        while not self._closed.wait(pause):
            pause = self._timeout_s
            with self._lock:
                if self._deadline is None or self._late:
                    continue
                left = self._deadline - time.monotonic()
                if left > 0:
                    pause = left
                    continue
                self._late = True
                call = self._call
            if call is not None:
                call.cancel()
