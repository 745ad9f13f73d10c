"""Channel and server options that both ends agree on, and the quiet defaults of the gRPC library."""

from __future__ import annotations

import os

MAX_MESSAGE_BYTES = 64 * 2**20
"""Largest message either way; the library's own 4 MiB is less than a long prompt's token ids may need."""
MAX_REQUEST_BYTES = 4 * 2**20
"""Largest request at a public port: a larger one is refused by its size, and not read by the event loop, for which all
others would wait. It holds a million tokens, by any measure."""
MAX_CALLS = 1024
"""Most calls of one connection at a time; further ones wait at the client."""


def server_options(*, public: bool) -> list[tuple[str, int]]:
    """A server's; ``public``: its port is for anybody."""
    return [
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_REQUEST_BYTES if public else MAX_MESSAGE_BYTES),
        ("grpc.max_concurrent_streams", MAX_CALLS),
        ("grpc.so_reuseport", 0),  # an occupied port is an error, not a second server behind it
        ("grpc.keepalive_time_ms", 30_000),  # a client whose host vanished frees its slots within a minute
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


CHANNEL_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.enable_retries", 0),  # a batch is repeated by whoever knows that it may be
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]
LOCAL_CHANNEL_OPTIONS: list[tuple[str, int]] = [*CHANNEL_OPTIONS, ("grpc.enable_http_proxy", 0)]
"""For Unix sockets and this host: a proxy named in the environment is for elsewhere."""


def quieten_grpc() -> None:
    """Keep the library's own log lines off stderr unless the environment asks for them; call before importing grpc."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    os.environ.setdefault("GLOG_minloglevel", "3")
