"""The extension module, or the reason why there is none."""

from __future__ import annotations

import importlib
import platform
from functools import lru_cache
from types import ModuleType

from qspec.errors import QspecError

INTERFACE = 2
"""What ``_native.INTERFACE`` must be: an extension that was built from other sources is not used."""

_MODULE = "qspec.kernels.native._native"
PROCESSORS = ("x86_64", "AMD64", "amd64", "aarch64", "arm64")
"""As CMakeLists.txt has them."""


class NativeUnavailable(QspecError):
    """There are no native kernels here; the message says why and what helps."""


@lru_cache(maxsize=1)
def load() -> ModuleType:
    """The extension module. ``NativeUnavailable`` when it was not built, not for this Python or not for this CPU.

    The modules beside this one call it before they import ``_native``, inside of functions: importing them is always
    possible.
    """
    try:
        module = importlib.import_module(_MODULE)
    except ModuleNotFoundError:
        if platform.machine() not in PROCESSORS:
            raise NativeUnavailable(
                f"no native kernels for {platform.machine()} processors: they are for x86-64 and AArch64"
            ) from None
        raise NativeUnavailable(
            "no native kernels: install a C++ compiler (Debian package g++) and install qspec-serve again"
        ) from None
    except ImportError as error:
        raise NativeUnavailable(f"the native kernels do not load ({error}); install qspec-serve again") from error
    if getattr(module, "INTERFACE", None) != INTERFACE:
        raise NativeUnavailable("the native kernels were built from another version; install qspec-serve again")
    if not module.instruction_sets():
        raise NativeUnavailable("no native kernels for this CPU: they need AVX2, FMA and F16C")
    return module


def instruction_sets() -> list[str]:
    """What this CPU can run, best first; raises as ``load``.

    On x86-64 of ``avx512-vbmi`` (with VNNI and GFNI), ``avx512-vnni``, ``avx512`` and ``avx2``, on AArch64 of
    ``neon-dotprod`` and ``neon``.
    """
    names: list[str] = load().instruction_sets()
    return names


def choose_instruction_set(name: str | None) -> str:
    """``name`` if this CPU has it (``NativeUnavailable``), or the best."""
    known = instruction_sets()
    if name is not None and name not in known:
        raise NativeUnavailable(f"this CPU does not have {name}; it has {', '.join(known)}")
    return name or known[0]
