"""File descriptors cross a Unix socket, and only their owner's."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qspec.errors import InvalidInput, WorkerLost
from qspec.memory import fd_passing
from qspec.memory.fd_passing import FdServer, receive_fds


@pytest.fixture
def path() -> Iterator[Path]:
    """A socket's path in a private directory that does not exist yet."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory) / "private" / "arena.sock"


@pytest.fixture
def file() -> Iterator[int]:
    """A file without a name that holds "arena"."""
    with tempfile.TemporaryFile() as stream:
        stream.write(b"arena")
        stream.flush()
        yield stream.fileno()


def test_every_peer_gets_the_same_file(path: Path, file: int) -> None:
    with contextlib.closing(FdServer(path, file)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        for _ in range(3):
            (fd,) = receive_fds(path, timeout=2)
            try:
                assert os.fstat(fd).st_ino == os.fstat(file).st_ino
                assert os.pread(fd, 5, 0) == b"arena"
                assert not os.get_inheritable(fd)
            finally:
                os.close(fd)
    assert not path.exists()
    assert os.fstat(file).st_size == 5  # still the caller's


def test_several_come_in_their_order(path: Path, file: int) -> None:
    with tempfile.TemporaryFile() as other, contextlib.closing(FdServer(path, file, other.fileno(), file)):
        received = receive_fds(path, timeout=2)
        inodes = [os.fstat(fd).st_ino for fd in received]
        assert not any(map(os.get_inheritable, received))
        for fd in received:
            os.close(fd)
        assert inodes == [os.fstat(fd).st_ino for fd in (file, other.fileno(), file)]


def test_waits_for_the_server(path: Path, file: int) -> None:
    servers: list[FdServer] = []
    starter = threading.Timer(0.15, lambda: servers.append(FdServer(path, file)))
    starter.start()
    os.close(receive_fds(str(path), timeout=5)[0])
    starter.join()
    servers[0].close()


def test_nobody_hands_it_out(path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(WorkerLost, match="nobody hands out the arena"):
        receive_fds(path, timeout=0.1)
    assert time.monotonic() - started < 2


def test_a_silent_peer_is_not_waited_for(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        with pytest.raises(WorkerLost):
            receive_fds(path, timeout=0.2)


def test_another_user_gets_nothing(path: Path, file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fd_passing, "_peer_uid", lambda connection: os.getuid() + 1)
    with contextlib.closing(FdServer(path, file)), pytest.raises(WorkerLost):
        receive_fds(path, timeout=0.2)


def test_peer_credentials_are_the_kernels() -> None:
    left, right = socket.socketpair()
    with left, right:
        assert fd_passing._peer_uid(left) == os.getuid()


def test_an_open_directory_is_refused(path: Path, file: int) -> None:
    path.parent.mkdir()
    path.parent.chmod(0o755)
    with pytest.raises(InvalidInput, match="open to other users"):
        FdServer(path, file)


def test_a_path_too_long_is_refused(path: Path, file: int) -> None:
    with pytest.raises(InvalidInput, match="longer than"):
        FdServer(path.parent / ("x" * 120), file)
