"""The client for ordinary code: calls block, streams are iterators. One client may be used by many threads."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import grpc

from qspec.client.completion import Completion, collect
from qspec.client.connection import make_connection
from qspec.client.deltas import Delta, delta_from_pb
from qspec.client.request import GenerateOptions, Message, Prompt, generate_request, tokenize_request
from qspec.client.retry import Attempts, RetryPolicy
from qspec.client.tls import Tls
from qspec.errors import InvalidInput
from qspec.v1 import generation_pb2 as pb
from qspec.v1 import generation_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Client:
    """A server at ``HOST:PORT`` or ``unix:PATH``; connects when it is first used.

    Args:
        address: the server's.
        tls: how to speak TLS; plain text without.
        api_key: shown with each call.
        client_id: names the client to the server's queue, where it is not the key or the host.
        retry: when to ask again.
        insecure: send ``api_key`` in plain text to another host.

    Raises ``InvalidInput`` for what cannot be used. Its calls raise ``QspecError``.
    """

    def __init__(
        self, address: str, *, tls: Tls | None = None, api_key: str | None = None, client_id: str | None = None,
        retry: RetryPolicy = RetryPolicy(), insecure: bool = False,
    ) -> None:
        self._connection = connection = make_connection(
            address, tls=tls, api_key=api_key, client_id=client_id, insecure=insecure)
        self._retry = retry
        if connection.credentials is None:
            self._channel = grpc.insecure_channel(connection.target, options=connection.options)
        else:
            self._channel = grpc.secure_channel(connection.target, connection.credentials, options=connection.options)
        self._stub = pb_grpc.GenerationServiceStub(self._channel)

    def generate(
        self, prompt: Prompt | pb.GenerateRequest, *, deadline_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Generator[Delta, None, None]:
        """Stream a text, or ``n`` of them. Closing the generator, or Ctrl-C while it waits, cancels on the server.

        A full or loading server is asked again by ``retry``, before the first piece only; ``deadline_s`` holds for all.
        """
        return self._generate(generate_request(prompt, options), deadline_s)

    def complete(
        self, prompt: Prompt | pb.GenerateRequest, *, deadline_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Completion:
        """One whole text; ``InvalidInput`` where ``n`` asks for more."""
        request = generate_request(prompt, options)
        if request.n > 1:
            raise InvalidInput.field("n", f"complete() gives one text, not {request.n}: use complete_all()")
        (completion,) = self.complete_all(request, deadline_s=deadline_s)
        return completion

    def complete_all(
        self, prompt: Prompt | pb.GenerateRequest, *, deadline_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> tuple[Completion, ...]:
        """The ``n`` whole texts."""
        request = generate_request(prompt, options)
        with contextlib.closing(self._generate(request, deadline_s)) as deltas:
            return collect(deltas, request.n or 1)

    def tokenize(self, prompt: str | Sequence[Message], *, deadline_s: float | None = None) -> tuple[int, ...]:
        """The tokens that ``generate`` would see."""
        request = tokenize_request(prompt)
        return tuple(self._call(self._stub.Tokenize, request, deadline_s).token_ids)

    def server_info(self, *, deadline_s: float | None = None) -> pb.GetServerInfoResponse:
        """What runs there; answered while it loads, too."""
        return self._call(self._stub.GetServerInfo, pb.GetServerInfoRequest(), deadline_s)  # type: ignore[no-any-return]

    def close(self) -> None:
        """Close the connection; streams that run are cancelled."""
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _generate(self, request: pb.GenerateRequest, deadline_s: float | None) -> Generator[Delta, None, None]:
        attempts = Attempts(self._retry, deadline_s)
        while True:
            call: Any = self._stub.Generate(request, timeout=attempts.left_s(), metadata=self._connection.metadata)
            begun = False
            try:
                for message in _messages(call):
                    begun = True
                    yield delta_from_pb(message)
                return
            except grpc.RpcError as failed:
                error = self._connection.error(failed)
                pause = None if begun else attempts.pause_s(error)
                if pause is None:
                    raise error from None
            finally:
                call.cancel()
            time.sleep(pause)

    def _call(self, method: Callable[..., Any], request: object, deadline_s: float | None) -> Any:
        attempts = Attempts(self._retry, deadline_s)
        while True:
            try:
                return method(request, timeout=attempts.left_s(), metadata=self._connection.metadata)
            except grpc.RpcError as failed:
                error = self._connection.error(failed)
                if (pause := attempts.pause_s(error)) is None:
                    raise error from None
            time.sleep(pause)


def _messages(call: Any) -> Iterator[pb.GenerateResponse]:
    """The stream's messages, typed."""
    yield from call
