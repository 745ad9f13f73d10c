"""Which GPUs a program sees, found out without CUDA: by NVML, which needs no context.

They are named by UUID. A number means another GPU to a program that sees fewer of them, as do the clients of an MPS
daemon that was started for a single one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from qspec.errors import InvalidInput

VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible_gpus(environment: Mapping[str, str] = os.environ, library: Any = None) -> list[str]:
    """UUIDs of the GPUs that programs with this environment see, in their order; ``library`` is the module ``pynvml``.

    ``InvalidInput`` without the package, or the library behind it. As CUDA does, the list in the environment is read up
    to the first entry that means nothing; the beginning of a UUID is enough.
    """
    library = library or _nvml()
    try:
        library.nvmlInit()
        found = [
            str(library.nvmlDeviceGetUUID(library.nvmlDeviceGetHandleByIndex(index)))
            for index in range(library.nvmlDeviceGetCount())
        ]
    except library.NVMLError as error:
        raise InvalidInput.field("device", f"NVML does not answer: {error}") from error
    if (listed := environment.get(VISIBLE)) is None:
        return found
    seen: list[str] = []
    for entry in (part.strip() for part in listed.split(",")):
        if entry.isdecimal() and int(entry) < len(found):
            seen.append(found[int(entry)])
        elif entry.startswith("MIG-"):
            seen.append(entry)
        elif entry.startswith("GPU-") and (named := [uuid for uuid in found if uuid.startswith(entry)]):
            seen.append(named[0])
        else:
            break
    return seen


def _nvml() -> Any:
    try:
        import pynvml
    except ImportError as error:
        raise InvalidInput.field(
            "device", "finding GPUs needs the package nvidia-ml-py; run: pip install 'qspec-serve[gpu]'") from error
    return pynvml
