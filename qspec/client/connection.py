"""How a server is reached, for both clients: address, TLS, what each call carries, and what its errors mean."""

from __future__ import annotations

from dataclasses import dataclass

import grpc

from qspec.client.tls import Tls
from qspec.errors import DeadlineExceeded, InvalidInput, QspecError, TlsFailed, WorkerLost
from qspec.rpc.addresses import is_local, parse_address
from qspec.rpc.api_keys import bearer
from qspec.rpc.channel import channel_options
from qspec.rpc.errors import from_rpc_error

CLIENT_ID_KEY = "qspec-client-id"
"""Metadata key by which a gateway names the clients that it asks for."""
_HANDSHAKE_PROBLEMS = (
    ("certificate has expired", "the server's certificate has expired"),
    ("CERTIFICATE_VERIFY_FAILED", "the server's certificate is of no authority that is believed here (CA)"),
    ("WRONG_VERSION_NUMBER", "the server speaks plain text"),
    ("Hostname Verification Check failed", "the server's certificate is for another name"),
    ("Peer name", "the server's certificate is for another name"),
)
"""What gRPC's texts hold, and what they mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """Everything but the channel, which is another class for asyncio."""

    target: str
    """As gRPC takes it."""
    credentials: grpc.ChannelCredentials | None
    """None: plain text."""
    metadata: tuple[tuple[str, str], ...]
    """Carried by each call."""

    @property
    def options(self) -> list[tuple[str, int]]:
        """The channel's options."""
        return channel_options(self.target)

    def error(self, failed: grpc.RpcError) -> QspecError:
        """What a failed call means."""
        problem = self._handshake_problem(failed.details() or "")
        if failed.code() is grpc.StatusCode.UNAVAILABLE and problem:
            return TlsFailed(f"TLS with {self.target} failed: {problem}")
        error = from_rpc_error(failed, f"the server at {self.target}")
        if type(error) is WorkerLost and failed.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded(f"the deadline passed before the server at {self.target} was done")
        return error

    def _handshake_problem(self, text: str) -> str:
        """What a text of gRPC's says about a handshake; empty when it is not about one."""
        for sign, problem in _HANDSHAKE_PROBLEMS:
            if sign in text:
                return problem
        if "handshake" in text.lower():
            return text.splitlines()[0]
        if "failed to connect" in text and "Socket closed" in text:  # accepted, and given up before anything was said
            if self.credentials is None:
                return "the server closed the connection, as one with TLS does to plain text"
            return "the server does not accept this client's certificate, or wants one"
        return ""


def make_connection(
    address: str, *, tls: Tls | None, api_key: str | None, client_id: str | None, insecure: bool
) -> Connection:
    """Checked; ``InvalidInput`` on ``address``, ``api_key``, or the fields of ``Tls.credentials``."""
    target = parse_address(address, "address")
    if api_key is not None and (not api_key.isascii() or not api_key.isprintable() or " " in api_key or not api_key):
        raise InvalidInput.field("api_key", "must be visible ASCII characters without spaces")
    if api_key is not None and tls is None and not insecure and not is_local(target):
        raise InvalidInput.field(
            "api_key", f"would go to {target} in plain text: use TLS, or say insecure where the network is trusted")
    metadata = [*([bearer(api_key)] if api_key is not None else [])]
    if client_id is not None:
        metadata.append((CLIENT_ID_KEY, client_id))
    credentials = None if tls is None else tls.credentials()
    return Connection(target=target, credentials=credentials, metadata=tuple(metadata))
