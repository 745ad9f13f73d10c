"""The directory of a stack's sockets: mode 0700, and gone when the stack is."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from qspec.errors import InvalidInput


@contextlib.contextmanager
def runtime_directory(given: Path | None) -> Iterator[tuple[Path, bool]]:
    """The directory, and whether it was made here; what was made here is removed at the end.

    ``given`` is used if it exists and made if not; without it a temporary one is made. Raises ``InvalidInput`` for one
    that others may enter.
    """
    if given is not None and given.is_dir():
        if given.stat().st_mode & 0o077:
            raise InvalidInput.field("runtime_dir", f"{given} is open to other users; chmod 700 it")
        yield given, False
        return
    try:
        if given is not None:
            given.mkdir(mode=0o700)
        directory = Path(tempfile.mkdtemp(prefix="qspec-")) if given is None else given
    except OSError as error:
        raise InvalidInput.field("runtime_dir", f"{given or tempfile.gettempdir()}: {error.strerror}") from error
    try:
        yield directory, True
    finally:
        shutil.rmtree(directory, ignore_errors=True)
