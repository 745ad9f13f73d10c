"""``python -m benchmarks.gpu.peer_program``: one of two processes that share a GPU, told what to do line by line.

Reads a JSON object per line, ``{"do": NAME, …}``, and answers each with one: what came of it, or ``{"error": CLASS,
"text": …}``. ``--channel R,W`` are pipes to the other process, for taking turns without anybody between them.
``benchmarks.gpu.peer`` starts it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.descriptor_json import descriptor_from_json, descriptor_to_json, specs_from_json
from qspec.errors import QspecError
from qspec.memory.budget import BudgetLine
from qspec.memory.cuda_arena import CudaArena
from qspec.memory.cuda_runtime import cuda_runtime
from qspec.memory.device_usage import DeviceUsage, device_turn, measure_context

WARM_UP = 20
"""Rounds before the first measured one."""


class PeerProgram:
    """What the process can be told to do: the public methods that return a dictionary."""

    def __init__(self, channel: tuple[int, int] | None) -> None:
        self._channel = channel
        self._arena: CudaArena | None = None
        self._events: dict[str, torch.cuda.Event] = {}
        self._buffers: dict[int, torch.Tensor] = {}

    @property
    def arena(self) -> CudaArena:
        """The arena that was created or opened."""
        assert self._arena is not None
        return self._arena

    def about(self) -> dict[str, Any]:
        """Who this is."""
        return {"pid": os.getpid(), "uuid": cuda_runtime().device_uuid(0)}

    def context(self, lock: str) -> dict[str, Any]:
        """Make the context and measure it."""
        runtime = cuda_runtime()
        with device_turn(Path(lock), lambda _text, _share: None):
            item = measure_context(runtime, 0, DeviceUsage.of(runtime.device_uuid(0)))
        return {"name": item.name, "bytes": item.bytes}

    def create(self, specs: list[Any], epoch: int, budget: list[Any]) -> dict[str, Any]:
        """Allocate an arena."""
        started = time.perf_counter()
        lines = [BudgetLine(owner, name, size, shared) for owner, name, size, shared in budget]
        self._arena = CudaArena.create(specs_from_json(specs), epoch=epoch, fingerprint="peer", budget=lines)
        milliseconds = 1e3 * (time.perf_counter() - started)
        return {"descriptor": descriptor_to_json(self._arena.descriptor), "ms": milliseconds}

    def open(self, descriptor: dict[str, Any]) -> dict[str, Any]:
        """Map an arena."""
        cuda_runtime().make_context(0)  # its time is not the handle's
        started = time.perf_counter()
        self._arena = CudaArena.open(descriptor_from_json(descriptor))
        return {"ms": 1e3 * (time.perf_counter() - started)}

    def fill(self, region: str, value: float) -> dict[str, Any]:
        """Write one value everywhere."""
        self.arena.tensor(region).fill_(value)
        torch.cuda.synchronize()
        return {}

    def read(self, region: str) -> dict[str, Any]:
        """The smallest and the largest value of a region."""
        tensor = self.arena.tensor(region)
        return {"least": float(tensor.min()), "most": float(tensor.max())}

    def close(self) -> dict[str, Any]:
        """Let go of the arena."""
        arena, self._arena = self.arena, None
        arena.close()
        return {"mapped": arena.is_mapped}

    def turns(self, rounds: int, repeats: int, megabytes: int, works: int, lead: bool) -> dict[str, Any]:
        """Take turns with the other process: ``works`` kernels over ``megabytes`` MB in each of one's own.

        The leader's answer has the microseconds of a round, both turns and the pipes between them, once per repeat.
        """
        if megabytes not in self._buffers:
            self._buffers[megabytes] = torch.zeros(megabytes << 20, dtype=torch.uint8, device="cuda")
        buffer = self._buffers[megabytes]

        def turn() -> None:
            for _ in range(works):
                buffer.add_(1)
                torch.cuda.synchronize()

        return self._alternate(rounds, repeats, lead, turn, lambda: None)

    def export_event(self) -> dict[str, Any]:
        """Make the event that this process records."""
        event = torch.cuda.Event(interprocess=True)
        event.record()
        self._events["mine"] = event
        return {"handle": bytes(event.ipc_handle()).hex()}

    def import_event(self, handle: str) -> dict[str, Any]:
        """Open the event that the other process records."""
        device = torch.device("cuda", torch.cuda.current_device())
        self._events["theirs"] = torch.cuda.Event.from_ipc_handle(device, bytes.fromhex(handle))
        return {}

    def ordered(self, region: str, rounds: int, repeats: int, by_events: bool, lead: bool) -> dict[str, Any]:
        """Add 1 to a shared region by turns, ordered by the hosts or by events on the GPU; times as ``turns``."""
        shared = self.arena.tensor(region)

        def by_host() -> None:
            shared.add_(1)
            torch.cuda.synchronize()

        def by_event() -> None:
            torch.cuda.current_stream().wait_event(self._events["theirs"])
            shared.add_(1)
            self._events["mine"].record()

        return self._alternate(rounds, repeats, lead, by_event if by_events else by_host, torch.cuda.synchronize)

    def _alternate(
        self, rounds: int, repeats: int, lead: bool, turn: Callable[[], None], finish: Callable[[], object]
    ) -> dict[str, Any]:
        """``turn`` of this process and of the other one in alternation, ``finish`` after each repeat."""
        assert self._channel is not None
        reading, writing = self._channel
        times = []
        for repeat in range(-1, repeats):
            started = time.perf_counter()
            count = WARM_UP if repeat < 0 else rounds
            for _ in range(count):
                if lead:
                    turn()
                    os.write(writing, b"x")
                    _expect(reading)
                else:
                    _expect(reading)
                    turn()
                    os.write(writing, b"x")
            finish()
            if repeat >= 0:
                times.append(1e6 * (time.perf_counter() - started) / count)
        return {"us": times}


def _expect(reading: int) -> None:
    if not os.read(reading, 1):
        raise ConnectionError("the other process is gone")


def main() -> None:
    """Do what is asked until nobody asks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channel", help="R,W")
    options = parser.parse_args()
    reading, writing = (int(fd) for fd in options.channel.split(",")) if options.channel else (-1, -1)
    program = PeerProgram((reading, writing) if options.channel else None)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = getattr(program, asked.pop("do"))(**asked)
        except Exception as error:  # noqa: BLE001  (whatever it is, the one who asked has to know)
            if not isinstance(error, QspecError):
                traceback.print_exc()
            answer = {"error": type(error).__name__, "text": str(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
