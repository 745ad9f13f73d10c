"""A port with TLS and keys: who gets in, what the others are told, and what changes while it serves."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from qspec.client import AsyncClient, InvalidInput, Tls, TlsFailed, Unauthenticated
from qspec.rpc.api_keys import key_line, new_key, read_api_keys
from qspec.rpc.authentication import Authentication
from qspec.rpc.health import is_serving
from qspec.rpc.server import PortAccess, RpcServer, Service
from qspec.rpc.server_tls import ServerTls
from qspec.rpc.watched_files import WatchedFiles
from qspec.v1 import generation_pb2 as pb
from qspec.v1 import generation_pb2_grpc as pb_grpc
from tests.certificates import Authority, Pair

NAME = "qspec.v1.GenerationService"


class Servicer(pb_grpc.GenerationServiceServicer):
    """Says that it is there."""

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Any) -> pb.GetServerInfoResponse:
        """Answer."""
        return pb.GetServerInfoResponse(model="toy")


@contextlib.asynccontextmanager
async def served(access: PortAccess, listen: str = "localhost:0") -> AsyncIterator[str]:
    register = lambda server: pb_grpc.add_GenerationServiceServicer_to_server(Servicer(), server)  # noqa: E731
    server = RpcServer([Service(name=NAME, register=register)], public=True, access=access)
    address = await server.start(listen)
    await server.set_serving()
    try:
        yield address
    finally:
        await server.stop(0)


def tls(pair: Pair, client_ca: Path | None = None) -> PortAccess:
    return PortAccess(
        credentials=ServerTls(certificate=pair.certificate, key=pair.key, client_ca=client_ca).credentials)


async def ask(address: str, **options: Any) -> str:
    async with AsyncClient(address, **options) as client:
        return (await client.server_info(deadline_s=10)).model


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 30))  # type: ignore[arg-type]


def test_the_right_authority_is_believed_and_no_other(tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")

    async def test() -> None:
        async with served(tls(authority.sign("localhost"))) as address:
            assert await ask(address, tls=Tls(ca=authority.certificate)) == "toy"
            for wrong in (Tls(ca=stranger.certificate), Tls()):
                with pytest.raises(TlsFailed, match=f"TLS with {address} failed: .*is of no authority"):
                    await ask(address, tls=wrong)
            with pytest.raises(TlsFailed, match="the server closed the connection, as one with TLS does"):
                await ask(address)
        async with served(PortAccess()) as address:
            with pytest.raises(TlsFailed, match="the server speaks plain text"):
                await ask(address, tls=Tls(ca=authority.certificate))
        async with served(tls(authority.sign("elsewhere.example"))) as address:
            with pytest.raises(TlsFailed, match="the server's certificate is for another name"):
                await ask(address, tls=Tls(ca=authority.certificate))
    run(test)


def test_clients_show_a_certificate_where_an_authority_for_them_is_given(tmp_path: Path) -> None:
    authority, clients = Authority(tmp_path), Authority(tmp_path, "clients")
    known, unknown = clients.sign("alice@example.org"), authority.sign("mallory@example.org")
    expired = clients.sign("old@example.org", expired=True)

    async def test() -> None:
        async with served(tls(authority.sign("localhost"), clients.certificate)) as address:
            shown = Tls(ca=authority.certificate, certificate=known.certificate, key=known.key)
            assert await ask(address, tls=shown) == "toy"
            for wrong in (None, unknown, expired):
                pair = {} if wrong is None else {"certificate": wrong.certificate, "key": wrong.key}
                with pytest.raises(TlsFailed, match="does not accept this client's certificate, or wants one"):
                    await ask(address, tls=Tls(ca=authority.certificate, **pair))
    run(test)


def test_an_expired_certificate_is_not_served(tmp_path: Path) -> None:
    async def test() -> None:
        with pytest.raises(InvalidInput, match="tls_cert: the certificate .* has expired"):
            async with served(tls(Authority(tmp_path).sign("localhost", expired=True))):
                pass
    run(test)


def test_changed_certificates_are_served_and_broken_ones_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = Authority(tmp_path), Authority(tmp_path, "second")
    pair = first.sign("localhost")

    async def test() -> None:
        async with served(tls(pair)) as address:
            assert await ask(address, tls=Tls(ca=first.certificate)) == "toy"
            newer = second.sign("localhost")
            newer.certificate.replace(pair.certificate)  # one file of two, as in the middle of a change
            for _ in range(2):
                assert await ask(address, tls=Tls(ca=first.certificate)) == "toy"
            assert caplog.text.count("is not the key of the certificate") == 1
            newer.key.replace(pair.key)
            assert await ask(address, tls=Tls(ca=second.certificate)) == "toy"
            with pytest.raises(TlsFailed):
                await ask(address, tls=Tls(ca=first.certificate))
    with caplog.at_level(logging.WARNING, "qspec.rpc"):
        run(test)


def test_a_key_that_everybody_may_read_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pair = Authority(tmp_path).sign("localhost")
    pair.key.chmod(0o644)
    with caplog.at_level(logging.WARNING, "qspec.rpc"):
        ServerTls(certificate=pair.certificate, key=pair.key).credentials()
    assert caplog.messages == [f"tls_key: every user of this host may read {pair.key}: chmod 600 it"]


def test_calls_need_a_key_and_probes_do_not(tmp_path: Path) -> None:
    file, key, later = tmp_path / "keys.txt", new_key(), new_key()
    file.write_text(key_line("alice", key), encoding="utf-8")
    keys = WatchedFiles([file], lambda: read_api_keys(file))
    refused: list[tuple[str, str]] = []

    async def test() -> None:
        access = PortAccess(interceptors=(Authentication(keys, lambda *call: refused.append(call)),))
        async with served(access) as address:
            assert await ask(address, api_key=key) == "toy"
            with pytest.raises(Unauthenticated, match="an API key is needed: authorization: Bearer KEY"):
                await ask(address)
            with pytest.raises(Unauthenticated, match="the API key is not known here"):
                await ask(address, api_key=later)
            async with AsyncClient(address) as client:  # a stream that has sent nothing yet is refused as well
                with pytest.raises(Unauthenticated):
                    _ = [delta async for delta in client.generate("1")]
            async with grpc.aio.insecure_channel(address) as channel:
                await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            file.write_text(key_line("alice", later), encoding="utf-8")
            assert await ask(address, api_key=later) == "toy"
            with pytest.raises(Unauthenticated):
                await ask(address, api_key=key)
            file.unlink()  # nobody new, and nobody is locked out
            assert await ask(address, api_key=later) == "toy"
    run(test)
    assert [method.rpartition("/")[2] for method, _ in refused] == [
        "GetServerInfo", "GetServerInfo", "Generate", "GetServerInfo"]
    assert all(peer.startswith(("ipv4:127.0.0.1:", "ipv6:")) for _, peer in refused)


def test_a_health_port_answers_probes_in_plain_text_and_nothing_else(tmp_path: Path) -> None:
    pair, probed = Authority(tmp_path).sign("localhost"), f"unix:{tmp_path}/health.sock"

    async def test() -> None:
        access = PortAccess(credentials=tls(pair).credentials, health_listen=probed)
        async with served(access) as address:
            assert await asyncio.to_thread(is_serving, probed)
            assert not await asyncio.to_thread(is_serving, address, 0.5)  # TLS
            async with grpc.aio.insecure_channel(probed) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await pb_grpc.GenerationServiceStub(channel).GetServerInfo(pb.GetServerInfoRequest())
                assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
        shutil.rmtree(tmp_path)
        assert not await asyncio.to_thread(is_serving, probed, 0.5)
    run(test)
