"""The directory of a stack's sockets: mode 0700, and gone when the stack is."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from qspec.errors import InvalidInput
from qspec.socket_path import make_private_directory


@contextlib.contextmanager
def runtime_directory(given: Path | None) -> Iterator[tuple[Path, bool]]:
    """The directory, and whether it was made here; what was made here is removed at the end.

    ``given`` is used if it exists and made if not; without it a temporary one is made. Raises ``InvalidInput`` for one
    of another user or that others may enter.
    """
    directory = _temporary() if given is None else given
    made = given is None or make_private_directory(given, "runtime_dir")
    try:
        yield directory, made
    finally:
        if made:
            shutil.rmtree(directory, ignore_errors=True)


def _temporary() -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="qspec-"))
    except OSError as error:
        raise InvalidInput.field("runtime_dir", f"{tempfile.gettempdir()}: {error.strerror}") from error
