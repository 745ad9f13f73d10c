"""The arena's small numbers as the host reads and writes them, one at a time.

Leases, lengths, tokens and block tables lie in memory that both workers map. Through a tensor each of them costs some
microseconds, through NumPy a tenth of that, which counts where a round has hundreds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qspec.memory.attachment import Arena


def numbers(arena: Arena, name: str) -> NDArray[np.signedinteger[Any]]:
    """The region ``name``, which lies in host memory: the same memory, not a copy."""
    found: NDArray[np.signedinteger[Any]] = arena.tensor(name).numpy()
    return found
