"""Entries of the cache that one process makes while others wait (no torch here)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from qspec.config import cache_directory
from qspec.errors import ModelError
from qspec.interfaces import Progress


@contextmanager
def locked(entry: Path, progress: Progress, *, work: str) -> Iterator[None]:
    """Hold the lock of one entry; it goes with the process, however that ends. ``work``: what the holder does."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(entry.with_name(f".{entry.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            progress(f"waiting for another process that {work}", None)
            lock.acquire()
    except OSError as error:
        raise unwritable(error) from error
    try:
        yield
    finally:
        lock.release()


def unwritable(error: OSError) -> ModelError:
    """What to tell people when the cache cannot be written, or a file of the model cannot be read."""
    if isinstance(error.filename, str) and not Path(error.filename).is_relative_to(cache_directory()):
        return ModelError(f"{error.filename} cannot be read by uid {os.geteuid()}: {error.strerror or error}")
    return ModelError(
        f"the model cache {cache_directory()} cannot be written ({error.strerror or error}); "
        "free some space there or set QSPEC_CACHE_DIR to another directory"
    )
