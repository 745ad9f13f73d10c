"""A value read from files, and read again when they change: certificates and keys are replaced while a server runs.

Looking costs a ``stat`` per file. What a change makes unreadable, or half-written, is said once, and the value before
it stays; Kubernetes replaces a mounted secret by turning a link, which shows as another inode.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from qspec.errors import QspecError

_log = logging.getLogger("qspec.rpc")
_Value = TypeVar("_Value")
_Signature = tuple[tuple[int, int, int] | None, ...]


class WatchedFiles(Generic[_Value]):
    """``load``'s value as long as ``paths`` stay as they are; may be asked by any thread.

    Raises what ``load`` raises, but only when it is made.
    """

    def __init__(self, paths: Sequence[Path], load: Callable[[], _Value]) -> None:
        self._paths, self._load = tuple(paths), load
        self._lock = threading.Lock()
        self._seen = self._signature()
        self._value = load()

    @property
    def current(self) -> _Value:
        """The newest value that could be read."""
        with self._lock:
            signature = self._signature()
            if signature != self._seen:
                self._seen = signature
                try:
                    self._value = self._load()
                except (QspecError, OSError) as error:
                    _log.warning("changed files are not used: %s", error)
            return self._value

    def _signature(self) -> _Signature:
        return tuple(_identity(path) for path in self._paths)


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
