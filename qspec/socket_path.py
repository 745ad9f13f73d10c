"""What the kernel takes as the name of a Unix socket."""

from __future__ import annotations

import os
from pathlib import Path

from qspec.errors import InvalidInput

_MAX_SOCKET_PATH = 107  # bytes in sockaddr_un, less the terminating zero


def check_socket_path(path: Path, field: str) -> None:
    """Raise ``InvalidInput`` for a path that the kernel would not take as the name of a Unix socket."""
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
        raise InvalidInput.field(
            field, f"the socket path {path} is longer than {_MAX_SOCKET_PATH} bytes; use a shorter directory (TMPDIR)")
