"""A piece of GPU memory that lives as long as somebody uses it.

Tensors over it hold the block (torch keeps the object that a tensor was made from), and the last one to go lets go of
the memory. So a tensor can never dangle, as on host memory, where the mapping goes with the last tensor. Graphs that
were captured over the memory hold no tensors: whoever keeps a graph keeps the arena's tensors, too.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import Any

from qspec.errors import QspecError

logger = logging.getLogger(__name__)


class DeviceBlock:
    """``size`` bytes at ``pointer`` on the GPU number ``device``; ``release`` is called when nobody uses them any more.

    The end of the process is the driver's to clean up after: by then CUDA may be gone already.
    """

    def __init__(self, pointer: int, size: int, device: int, release: Callable[[], None]) -> None:
        self.pointer, self.size, self.device = pointer, size, device
        weakref.finalize(self, _let_go, release).atexit = False

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """See https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html."""
        return {"shape": (self.size,), "typestr": "|u1", "data": (self.pointer, False), "version": 3}


def _let_go(release: Callable[[], None]) -> None:
    try:
        release()
    except QspecError as error:  # nobody could catch it here
        logger.warning("GPU memory was not released: %s", error)
