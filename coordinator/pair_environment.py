"""What the workers of a pair find in their environment: which GPU is theirs, and the way to its MPS daemon.

Several pairs have a GPU each, and a daemon each, so that a fault on one GPU ends the contexts of one pair only. A
single pair is left what the server itself sees.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from coordinator.mps import mps_for_workers
from coordinator.pair_source import PairSource
from qspec.config import StackConfig
from qspec.device import configured_backend, has_driver
from qspec.errors import InvalidInput
from qspec.gpus import VISIBLE, visible_gpus
from qspec.quant.methods import NO_DRAFTER, Backend


class PairEnvironments:
    """Gives each pair a GPU, as long as it is there; may be used by several threads."""

    def __init__(
        self, config: StackConfig, *, several: bool, tell: Callable[[str], None],
        find_gpus: Callable[[], list[str]] = visible_gpus,
    ) -> None:
        """``several``: there may be more than one pair. ``tell`` is told what is found out about MPS."""
        self._config = config
        self._several = several
        self._tell = tell
        self._find_gpus = find_gpus
        self._lock = threading.Lock()
        self._free: list[str] | None = None

    @contextlib.contextmanager
    def of(self, source: PairSource, directory: Path) -> Iterator[Mapping[str, str]]:
        """What to add to the environment of a pair's workers while it is entered; ``directory``: the pair's own.

        ``InvalidInput`` when every GPU has a pair already.
        """
        if source.elsewhere or configured_backend(self._config) is not Backend.CUDA:
            yield {}
            return
        with contextlib.ExitStack() as stack:
            gpu = stack.enter_context(self._gpu()) if self._several else {}
            if self._config.draft_quantization == NO_DRAFTER or not has_driver():  # a worker says that there is no GPU
                yield gpu
                return
            mps = stack.enter_context(
                mps_for_workers(directory / "mps", self._tell, added=gpu))
            yield {**gpu, **mps}

    @contextlib.contextmanager
    def _gpu(self) -> Iterator[dict[str, str]]:
        with self._lock:
            if self._free is None:
                self._free = self._find_gpus()
            if not self._free:
                raise InvalidInput.field("pairs", "every GPU has a pair already; each needs one of its own")
            gpu = self._free.pop(0)
        try:
            yield {VISIBLE: gpu}
        finally:
            with self._lock:
                self._free.insert(0, gpu)
