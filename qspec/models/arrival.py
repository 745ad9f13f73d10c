"""Waiting for a model whose files are not there yet, because somebody still fills the volume.

A server that ended instead would be started again and again, ever more slowly; one that waits is NOT_SERVING and says
why. Files that come while it waits are taken once nothing has changed for a while: half a copy looks like a damaged
model. Nothing here imports torch.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

from qspec.errors import InvalidInput, ModelError
from qspec.interfaces import Progress
from qspec.models.resolve import resolve

LOOK_EVERY_S = 1.0
STEADY_S = 5.0
"""Seconds without a change after which files that have just come are complete."""


async def model_arrival(name: str, wait_s: float, progress: Progress, *, steady_s: float = STEADY_S) -> None:
    """Return once model ``name`` is there (``qspec.models.resolve``); at once where ``wait_s`` is 0.

    Raises ``ModelError`` when it has not begun to come after ``wait_s`` seconds, ``InvalidInput`` for no such number.
    """
    if not wait_s >= 0:
        raise InvalidInput.field("wait_for_model", f"must be a number of seconds from 0 on, got {wait_s:g}")
    if wait_s == 0:
        return
    clock = asyncio.get_running_loop().time
    until, waiting = clock() + wait_s, False
    state: frozenset[tuple[str, int, int]] | None = None
    since = clock()
    while True:
        try:
            path = (await asyncio.to_thread(resolve, name)).path
        except ModelError as error:
            if clock() >= until:
                raise
            if not waiting:
                reason = error.violations[0].description.partition(";")[0]
                progress(f"waiting for the model, at most {wait_s:g} s: {reason}", None)
            waiting, state = True, None
        else:
            if not waiting:
                return
            found = frozenset(_files(path))
            if found != state:
                state, since = found, clock()
            elif clock() - since >= steady_s:
                return
        await asyncio.sleep(min(LOOK_EVERY_S, steady_s, wait_s))


def _files(path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, size and time of change of a model's files; those that are gone again are none."""
    with contextlib.suppress(OSError):
        for file in path.iterdir() if path.is_dir() else [path]:
            entry = file.stat()
            yield file.name, entry.st_size, entry.st_mtime_ns
