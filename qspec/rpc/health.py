"""Asking a server how it is (``grpc.health.v1``): the one question of supervisors, probes and people."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from qspec.rpc.channel import open_channel


def is_serving(address: str, timeout_s: float = 1.0) -> bool:
    """Whether the server at ``address`` answers SERVING; ``InvalidInput`` for what is no address."""
    return why_not_serving(address, timeout_s) is None


def why_not_serving(address: str, timeout_s: float = 1.0) -> str | None:
    """What keeps the server at ``address`` from being used, for people; None when it answers SERVING.

    Raises ``InvalidInput`` for what is no address.
    """
    with open_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError as error:
            details: str = error.details() or ""
            return f"nobody answers there ({details.rpartition(': ')[2].rstrip(']')})"  # gRPC's reason comes last
    if answer.status == health_pb2.HealthCheckResponse.SERVING:
        return None
    return "it does not serve yet"
