"""One interceptor that lets in calls with a known API key, for every service but health."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from grpc_status import rpc_status

from qspec.errors import Unauthenticated
from qspec.rpc.api_keys import ApiKeys
from qspec.rpc.errors import to_status
from qspec.rpc.watched_files import WatchedFiles

_OPEN = "/grpc.health.v1.Health/"
"""What probes ask, who have no key."""


class Authentication(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Refuses calls without a key of ``keys`` with UNAUTHENTICATED, before anything of them is read.

    ``refused`` is told the method and the peer, as gRPC names both, of each call that it refuses.
    """

    def __init__(
        self, keys: WatchedFiles[ApiKeys], refused: Callable[[str, str], None] = lambda method, peer: None
    ) -> None:
        self._keys = keys
        self._refused = refused

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """The handler of a call that may be made, or one that refuses it."""
        method: str = handler_call_details.method
        metadata = handler_call_details.invocation_metadata or ()
        if method.startswith(_OPEN) or self._keys.current.name_of(metadata) is not None:
            return await continuation(handler_call_details)
        named = any(name == "authorization" for name, _ in metadata)
        return self._refusal(
            method, "the API key is not known here" if named else "an API key is needed: authorization: Bearer KEY")

    def _refusal(self, method: str, text: str) -> Any:
        """A handler for calls of any shape; as one of streams it answers without waiting for a message."""
        async def refuse(_requests: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            self._refused(method, context.peer())
            status = rpc_status.to_status(to_status(Unauthenticated(text)))
            await context.abort(status.code, status.details, status.trailing_metadata)

        return grpc.stream_stream_rpc_method_handler(refuse)
