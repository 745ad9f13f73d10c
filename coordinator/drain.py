"""How a coordinator stops taking requests: those that are here may end, as far as time allows."""

from __future__ import annotations

import asyncio
import contextlib

from coordinator.engine import RETRY_ELSEWHERE_S
from coordinator.serving import ServerState, Serving
from qspec.errors import Unavailable


async def drain(serving: Serving, grace_s: float) -> None:
    """Let nobody in, and wait ``grace_s`` seconds at most for requests that are running or waiting.

    The rest get ``Unavailable``, with a time to ask again; so do all when this is cancelled.
    """
    serving.state = ServerState.DRAINING
    if serving.router is None:
        return
    try:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(serving.router.drain(), grace_s)
    finally:
        text = "the server is shutting down and did not finish this request: ask again"
        serving.router.abandon(Unavailable(text, RETRY_ELSEWHERE_S))
