"""A call that gets so many seconds, where it cannot be told to stop: nobody waits for it any longer then."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TypeVar

T = TypeVar("T")


def within(seconds: float, call: Callable[[], T]) -> T:
    """What ``call`` returns or raises; ``TimeoutError`` when it does not in time. It then ends by itself, unheard."""
    answer: Future[T] = Future()

    def work() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:  # noqa: BLE001  raised for whoever waits
            answer.set_exception(error)

    threading.Thread(target=work, name="time limit", daemon=True).start()
    try:
        return answer.result(seconds)
    except FutureTimeoutError as error:  # a class of its own before Python 3.11
        raise TimeoutError(f"not within {seconds:g} s") from error
