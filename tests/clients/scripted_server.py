"""A server that does what the prompt says, for what a real one cannot be made to do at will.

``python -m tests.clients.scripted_server [KEY CERTIFICATE [CLIENT_CA]]`` prints the port once it listens. With a key
and a certificate it speaks TLS; with the certificate of an authority it demands one of the client's.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
from google.rpc import status_pb2
from grpc_status import rpc_status

from qspec.errors import FieldViolation, InvalidInput, QueueFull
from qspec.rpc.errors import to_status
from qspec.v1 import generation_pb2 as pb
from qspec.v1 import generation_pb2_grpc as pb_grpc

REPOSITORY = Path(__file__).resolve().parents[2]
RETRY_AFTER_S = 1.5


class ScriptedService(pb_grpc.GenerationServiceServicer):  # type: ignore[misc]  # generated without types
    """Answers ``PIECE``, then does as the prompt says."""

    def Generate(
        self, request: pb.GenerateRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.GenerateResponse]:
        """One piece, and what the prompt asks for."""
        if request.text == "full":
            _refuse(context, to_status(QueueFull("the queue is full", RETRY_AFTER_S), public=True))
        if request.text == "fields":
            status = to_status(InvalidInput(FieldViolation("größe", "is 世界"), FieldViolation("stop[0]", "is empty")))
            status.message = "only the details say more"
            _refuse(context, status)
        if request.text == "metadata":
            sent = dict(context.invocation_metadata())
            text = f"{sent.get('authorization')}|{sent.get('qspec-client-id')}"
            yield pb.GenerateResponse(text=text, finish_reason=pb.FINISH_REASON_LENGTH)
            return
        yield pb.GenerateResponse(text="PIECE")
        if request.text == "die":
            time.sleep(0.2)  # the piece is on its way
            os._exit(1)
        if request.text == "stall":
            time.sleep(20)
        if request.text == "newer":
            yield pb.GenerateResponse(text="!", finish_reason=99)  # type: ignore[arg-type]


def _refuse(context: grpc.ServicerContext, status: status_pb2.Status) -> None:
    context.abort_with_status(rpc_status.to_status(status))


@contextlib.contextmanager
def scripted_server(*tls: Path) -> Iterator[str]:
    """Run the program until the block ends. Yields its address."""
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.clients.scripted_server", *map(str, tls)], cwd=REPOSITORY,
        stdout=subprocess.PIPE, text=True,
    )
    try:
        assert server.stdout is not None
        yield f"localhost:{int(server.stdout.readline())}"
    finally:
        server.kill()
        server.communicate()


def main() -> None:
    """Serve until killed."""
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    pb_grpc.add_GenerationServiceServicer_to_server(ScriptedService(), server)
    files = [Path(argument).read_bytes() for argument in sys.argv[1:]]
    if files:
        key, certificate, *client_ca = files
        credentials = grpc.ssl_server_credentials(
            [(key, certificate)], client_ca[0] if client_ca else None, require_client_auth=bool(client_ca))
        port = server.add_secure_port("localhost:0", credentials)
    else:
        port = server.add_insecure_port("localhost:0")
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
