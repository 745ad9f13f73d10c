"""Channels to the services, for the synchronous clients (the decoding loop's thread, the command-line client)."""

from __future__ import annotations

import grpc

from qspec.errors import WorkerLost
from qspec.rpc.addresses import is_local, parse_address
from qspec.rpc.options import CHANNEL_OPTIONS, LOCAL_CHANNEL_OPTIONS


def open_channel(address: str, *, field: str = "address") -> grpc.Channel:
    """A channel to ``unix:PATH`` or ``HOST:PORT``; connects when it is first used.

    Raises ``InvalidInput`` on ``field`` for anything else. In plain text: the workers and health ports are reached so;
    a public port with TLS is for ``qspec.client``.
    """
    target = parse_address(address, field)
    return grpc.insecure_channel(target, options=channel_options(target))


def channel_options(target: str) -> list[tuple[str, int]]:
    """The options of a channel to ``target``, for those who open an asyncio channel themselves."""
    return LOCAL_CHANNEL_OPTIONS if is_local(target) else CHANNEL_OPTIONS


def wait_for_ready(channel: grpc.Channel, address: str, timeout_s: float) -> None:
    """Return once ``channel`` is connected; ``WorkerLost`` when that takes longer than ``timeout_s`` seconds.

    Tries again until then, because start order does not matter. Connected is not yet SERVING (``grpc.health.v1``).
    """
    connected = grpc.channel_ready_future(channel)
    try:
        connected.result(timeout=timeout_s)
    except grpc.FutureTimeoutError:
        raise WorkerLost(f"nobody listens at {address} (waited {timeout_s:g} s); is the server running?") from None
    finally:
        connected.cancel()
