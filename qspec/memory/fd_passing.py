"""Handing file descriptors to another process of the same user.

The verifier's arena has no name in the file system (it is unlinked as soon as it exists, so that nothing can stay
behind), so the only way to map it is to be given its descriptor; the files of the weights go with it. ``FdServer``
gives them away over a Unix socket (``SCM_RIGHTS``), in a directory that only the owner can enter, and asks the kernel
who is at the other end (``SO_PEERCRED``, where there is one) before it does.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from pathlib import Path

from qspec.errors import WorkerLost
from qspec.socket_path import check_socket_path, make_private_directory

_GREETING = b"qspec-arena"
_PEER_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: Linux's struct ucred
_RETRY_S = 0.02
_MOST_FDS = 16
"""More than an arena has files."""


class FdServer:
    """Gives file descriptors, always the same, to every process of the same user that connects to ``path``.

    ``fds`` stay the caller's: they must stay open until ``close``, and are not closed here. The directory of ``path``
    is created with mode 0700 where it is missing; one of another user or that others may enter is refused
    (``InvalidInput``).
    """

    def __init__(self, path: Path, *fds: int) -> None:
        check_socket_path(path, "runtime_dir")
        make_private_directory(path.parent, "runtime_dir")
        path.unlink(missing_ok=True)
        self.path = path
        self._fds = fds
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        path.chmod(0o600)
        self._listener.listen()
        self._thread = threading.Thread(target=self._accept, name="fd-server", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop giving the descriptors away and remove the socket."""
        with contextlib.suppress(OSError):  # the peer-less shutdown wakes accept() and then complains
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        self.path.unlink(missing_ok=True)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            with connection, contextlib.suppress(OSError):  # a peer that left needs nothing
                if _peer_uid(connection) in (None, os.getuid()):
                    socket.send_fds(connection, [_GREETING], self._fds)


def receive_fds(path: str | Path, timeout: float) -> list[int]:
    """The descriptors given away at ``path``, at least one; the caller closes them.

    Tries again until ``timeout`` seconds are over, because the giver may not have started yet, and then raises
    ``WorkerLost``.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            return _receive_once(path, max(deadline - time.monotonic(), _RETRY_S))
        except OSError as error:
            if time.monotonic() + _RETRY_S >= deadline:
                raise WorkerLost(f"nobody hands out the arena at {path}: {error.strerror or error}") from error
        time.sleep(_RETRY_S)


def _receive_once(path: str | Path, timeout: float) -> list[int]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        connection.connect(str(path))
        message, fds, _, _ = socket.recv_fds(connection, len(_GREETING), _MOST_FDS)
    if message != _GREETING or not fds:
        for fd in fds:
            os.close(fd)
        raise ConnectionRefusedError("the peer gave no descriptor (another user?)")
    for fd in fds:
        os.set_inheritable(fd, False)
    return fds


def _peer_uid(connection: socket.socket) -> int | None:
    """The user id of the peer; None where the system has no ``SO_PEERCRED`` (the directory's mode decides there)."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    credentials = connection.getsockopt(socket.SOL_SOCKET, option, _PEER_CREDENTIALS.size)
    uid: int = _PEER_CREDENTIALS.unpack(credentials)[1]
    return uid
