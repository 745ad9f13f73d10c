"""Waiting for another process by a word in memory that both have mapped (Linux's futex).

What one process leaves in an arena, another one can wait for without a message: the kernel wakes it some microseconds
after the word was changed, and nothing runs meanwhile. Python has no such call, so it is made through the C library;
``ctypes`` lets other Python threads run while it waits.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform

from qspec.errors import ContractViolation

_SYSTEM_CALL = {"x86_64": 202, "aarch64": 98}.get(platform.machine()) if os.uname().sysname == "Linux" else None
_WAIT, _WAKE = 0, 1  # between processes: without FUTEX_PRIVATE_FLAG
_EVERYBODY = (1 << 31) - 1
FUTEX_AVAILABLE = _SYSTEM_CALL is not None
"""Whether this machine has the call."""


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def futex_wait(address: int, value: int, timeout_s: float) -> None:
    """Sleep until somebody calls ``futex_wake`` for the 32-bit word at ``address``, or for ``timeout_s`` seconds.

    Returns at once where the word is not ``value``, and may return for no reason: look again.
    """
    whole = int(timeout_s)
    timeout = _Timespec(whole, int((timeout_s - whole) * 1e9))
    _call(address, _WAIT, value, ctypes.byref(timeout))


def futex_wake(address: int) -> None:
    """Wake everybody who waits for the word at ``address``."""
    _call(address, _WAKE, _EVERYBODY, None)


_C_LIBRARY = ctypes.CDLL(None, use_errno=True)


def _call(address: int, operation: int, value: int, timeout: object) -> None:
    if _SYSTEM_CALL is None:
        raise ContractViolation("this machine has no futex")
    done = _C_LIBRARY.syscall(
        ctypes.c_long(_SYSTEM_CALL), ctypes.c_void_p(address), ctypes.c_int(operation), ctypes.c_uint32(value),
        timeout, None, ctypes.c_int(0))
    error = ctypes.get_errno()
    if done < 0 and error not in (errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT):
        raise OSError(error, os.strerror(error))
