"""Asking a server how it is (``grpc.health.v1``): the one question of supervisors, probes and people."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from qspec.rpc.channel import open_channel


def is_serving(address: str, timeout_s: float = 1.0) -> bool:
    """Whether the server at ``address`` answers SERVING; ``InvalidInput`` for what is no address."""
    with open_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
