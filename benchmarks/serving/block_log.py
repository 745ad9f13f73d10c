"""What was measured so far, on disk: a run that was stopped goes on where it was.

One JSON object per line: the settings first, then blocks as they end. Blocks measured with other settings are not mixed
with these.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.serving.load_generator import GeneratedLoad
from benchmarks.serving.stream_record import StreamRecord
from qspec.errors import InvalidInput

BURST = 0.0
"""The load of blocks whose requests all come at once."""


@dataclass(frozen=True, slots=True)
class BlockKey:
    """Which block: blocks that differ in nothing but the configuration have the same requests."""

    load: float
    """Share of the saturation's arrivals per second; ``BURST``: all at once."""
    index: int
    configuration: str


class RecordLog:
    """Objects, one per line, behind the settings that they were found with."""

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        """``InvalidInput`` when the file has something else, or what was measured with other settings."""
        self._path = path
        if path is None:
            return
        text = path.read_text("utf-8") if path.exists() else ""
        lines = text[: text.rfind("\n") + 1].splitlines()  # a line without an end was cut off with its run
        if not lines:
            path.write_text(json.dumps({"settings": settings}) + "\n", "utf-8")
            return
        try:
            found = json.loads(lines[0])["settings"]
            for line in lines[1:]:
                self._read(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInput.field("--log", f"{path} is no log of this benchmark: {error}") from error
        if found != json.loads(json.dumps(settings)):
            differing = sorted(name for name in {*found, *settings} if found.get(name) != settings.get(name))
            raise InvalidInput.field(
                "--log", f"{path} was measured with other settings ({', '.join(differing)}); name another file")
        path.write_text("".join(f"{line}\n" for line in lines), "utf-8")

    def _read(self, record: dict[str, Any]) -> None:
        """Take in what another run has kept."""
        raise NotImplementedError

    def _keep(self, record: dict[str, Any]) -> None:
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")


class BlockLog(RecordLog):
    """Measured blocks by key; with a ``path`` they are kept there, too."""

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        """``InvalidInput`` as of ``RecordLog``."""
        self.blocks: dict[BlockKey, GeneratedLoad] = {}
        super().__init__(path, settings)

    def add(self, key: BlockKey, load: GeneratedLoad) -> None:
        """Keep a block."""
        self.blocks[key] = load
        self._keep({**asdict(key), "cpu_s": load.cpu_s, "streams": [asdict(stream) for stream in load.streams]})

    def _read(self, record: dict[str, Any]) -> None:
        key = BlockKey(record["load"], record["index"], record["configuration"])
        streams = tuple(StreamRecord.from_json(stream) for stream in record["streams"])
        self.blocks[key] = GeneratedLoad(streams=streams, cpu_s=record["cpu_s"])


class ResultLog(RecordLog):
    """What whole measurements found, by name; for those that cannot go on in the middle."""

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        """``InvalidInput`` as of ``RecordLog``."""
        self.results: dict[str, dict[str, Any]] = {}
        super().__init__(path, settings)

    def add(self, name: str, result: dict[str, Any]) -> None:
        """Keep a result: a JSON object."""
        self.results[name] = result
        self._keep({"name": name, "result": result})

    def _read(self, record: dict[str, Any]) -> None:
        self.results[record["name"]] = record["result"]
