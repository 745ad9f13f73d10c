"""A stack for one run of the client: a coordinator, and through it both workers, that live no longer than the client.

The coordinator makes the directory of the sockets itself and removes it; a client that is killed leaves a broken
lifeline, at which coordinator and workers clean up and end.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from coordinator.supervisor import ChildProcess
from qspec.cli import stack_options
from qspec.config import StackConfig
from qspec.errors import QspecError
from qspec.socket_path import check_socket_path

STOP_GRACE_S = 12.0
"""Seconds that the coordinator has to end itself and its workers."""


class PrivateStack:
    """``async with PrivateStack(config, show) as address``: the address of a stack that is ready."""

    def __init__(self, config: StackConfig, show: Callable[[str, float], None]) -> None:
        """``show`` is told the stage of the start and the share that is done."""
        self._config = config
        self._show = show
        self._directory = Path(tempfile.gettempdir()) / f"qspec-{secrets.token_hex(8)}"
        self._child: ChildProcess | None = None

    async def __aenter__(self) -> str:
        socket = self._directory / "coordinator.sock"
        check_socket_path(self._directory / "coordinator.sock", "TMPDIR")
        event_loop = asyncio.get_running_loop()
        changed = asyncio.Event()

        def wake() -> None:
            if not event_loop.is_closed():
                event_loop.call_soon_threadsafe(changed.set)

        arguments = [f"--listen=unix:{socket}", f"--runtime-dir={self._directory}", *stack_options(self._config)]
        self._child = ChildProcess("coordinator", "coordinator", arguments, wake)
        try:
            while self._child.ready is None:
                if self._child.ended:
                    raise self._child.failure()
                stage = self._child.stage
                self._show(stage.text, stage.fraction or 0.0)
                await changed.wait()
                changed.clear()
        except BaseException:
            self._stop()
            raise
        return f"unix:{socket}"

    async def __aexit__(self, *exception: object) -> None:
        self._stop()

    def failure(self) -> QspecError | None:
        """Why the stack is gone, if it is."""
        return self._child.failure() if self._child is not None and self._child.ended else None

    def _stop(self) -> None:
        """End everything; blocks, so that nothing interrupts it."""
        if self._child is not None:
            self._child.terminate()
            self._child.close(STOP_GRACE_S)
        shutil.rmtree(self._directory, ignore_errors=True)  # if the coordinator was killed
