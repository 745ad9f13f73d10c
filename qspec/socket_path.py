"""Where Unix sockets lie: what the kernel takes as a name, and directories that nobody else can enter.

Whoever may write into the directory of a worker's socket may put another in its place, and is handed the arena. So it
has to be this user's own, and closed to all others.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from qspec.errors import InvalidInput

_MAX_SOCKET_PATH = 107  # bytes in sockaddr_un, less the terminating zero


def check_socket_path(path: Path, field: str) -> None:
    """Raise ``InvalidInput`` for a path that the kernel would not take as the name of a Unix socket."""
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
        raise InvalidInput.field(
            field, f"the socket path {path} is longer than {_MAX_SOCKET_PATH} bytes; use a shorter directory (TMPDIR)")


def check_private_directory(directory: Path, field: str) -> None:
    """Raise ``InvalidInput`` unless ``directory`` exists, is this user's, and no other user may enter it."""
    entry = _directory(directory, field)
    if entry.st_uid != os.geteuid():
        raise InvalidInput.field(
            field, f"{directory} belongs to uid {entry.st_uid} and this process runs as uid {os.geteuid()}; give each "
                   "user a directory of its own (the processes of a stack run as one user)")
    if entry.st_mode & 0o077:
        raise InvalidInput.field(field, f"{directory} is open to other users; chmod 700 it")


def make_private_directory(directory: Path, field: str) -> bool:
    """Make ``directory`` with mode 0700, or check what is there; whether it was made.

    Raises ``InvalidInput`` for one that cannot be made or is not private.
    """
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        check_private_directory(directory, field)
        return False
    except OSError as error:
        raise InvalidInput.field(field, f"the directory {directory} cannot be made: {error.strerror}") from error
    return True


def check_socket_place(path: Path, field: str) -> None:
    """Raise ``InvalidInput`` unless a socket can be made at ``path``, in the place of another one if there is one."""
    _directory(path.parent, field)
    if not os.access(path.parent, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise InvalidInput.field(field, f"uid {os.geteuid()} may make no socket in {path.parent}; choose another place")
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise InvalidInput.field(field, f"{path} cannot be used: {error.strerror}") from error
    if not stat.S_ISSOCK(mode):
        raise InvalidInput.field(field, f"{path} exists and is no socket; choose another path")


def _directory(directory: Path, field: str) -> os.stat_result:
    try:
        entry = directory.stat()
    except FileNotFoundError as error:
        raise InvalidInput.field(
            field, f"the directory {directory} does not exist; create it with mode 0700") from error
    except OSError as error:
        raise InvalidInput.field(field, f"the directory {directory} cannot be used: {error.strerror}") from error
    if not stat.S_ISDIR(entry.st_mode):
        raise InvalidInput.field(field, f"{directory} is no directory; choose another path")
    return entry
