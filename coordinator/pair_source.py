"""Where the workers of the pairs come from: the command line, or a file that may change while the server runs.

A line of the file is a pair: ``own`` for workers of the server's own, or ``VERIFIER [DRAFTER]`` for two addresses of
workers that somebody else runs. A verifier alone has a drafter of the server's own, or none where drafts are off. Empty
lines and such that begin with ``#`` mean nothing. The order means nothing either; a pair is known by its line.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qspec.errors import InvalidInput
from qspec.rpc.addresses import parse_address

logger = logging.getLogger(__name__)
OWN = "own"
"""What a line says of a pair of the server's own."""
LOOK_EVERY_S = 1.0
MOST_PAIRS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSource:
    """Addresses of workers that somebody else runs; None: the server's own."""

    verifier: str | None = None
    drafter: str | None = None

    @property
    def own(self) -> bool:
        """Whether all its workers are the server's own."""
        return self.verifier is None and self.drafter is None

    @property
    def elsewhere(self) -> bool:
        """Whether somebody else runs one of its workers."""
        return not self.own


def given_pairs(pairs: int | None, verifiers: Sequence[str], drafters: Sequence[str]) -> tuple[PairSource, ...]:
    """The pairs that a command line asks for; ``InvalidInput`` naming the option.

    Args:
        pairs: how many of the server's own; None where nothing is said of it.
        verifiers: addresses of verifiers that somebody else runs, in the order of the pairs.
        drafters: the same of drafters.
    """
    for option, addresses in (("verifier", verifiers), ("drafter", drafters)):
        for address in addresses:
            parse_address(address, option)
        if len(set(addresses)) < len(addresses):
            raise InvalidInput.field(option, "has the same address twice; each pair has workers of its own")
    if pairs is not None and (verifiers or drafters):
        raise InvalidInput.field("pairs", "is for workers of the server's own; leave out --verifier and --drafter")
    if not verifiers and not drafters:
        if not 1 <= (pairs or 1) <= MOST_PAIRS or pairs == 0:
            raise InvalidInput.field("pairs", f"must be from 1 to {MOST_PAIRS}, got {pairs}")
        return (PairSource(),) * (pairs or 1)
    if max(len(verifiers), len(drafters)) > 1 and drafters and len(verifiers) != len(drafters):
        raise InvalidInput.field(
            "drafter", f"{len(drafters)} for {len(verifiers)} verifiers; give one for each, in the same order, or none")
    count = max(len(verifiers), len(drafters))
    return tuple(
        PairSource(verifier=verifier, drafter=drafter)
        for verifier, drafter in zip(
            verifiers or [None] * count, drafters or [None] * count, strict=True)  # type: ignore[list-item]
    )


def read_pairs(path: Path) -> tuple[PairSource, ...]:
    """The pairs that a file asks for; ``InvalidInput`` naming file and line."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise InvalidInput.field("pairs_file", f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidInput.field("pairs_file", f"{path} is not UTF-8") from error
    found: list[PairSource] = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        where = f"pairs_file, line {number}"
        if len(words) > 2:
            raise InvalidInput.field(where, f"must be {OWN}, or VERIFIER [DRAFTER], got {line.strip()!r}")
        if words == [OWN]:
            found.append(PairSource())
            continue
        for word in words:
            parse_address(word, where)
        source = PairSource(verifier=words[0], drafter=words[1] if len(words) == 2 else None)
        if source in found:
            raise InvalidInput.field(where, "is there twice; each pair has workers of its own")
        found.append(source)
    if not 1 <= len(found) <= MOST_PAIRS:
        raise InvalidInput.field("pairs_file", f"{path} names {len(found)} pairs; give from 1 to {MOST_PAIRS}")
    return tuple(found)


async def watch_pairs(path: Path, change: Callable[[tuple[PairSource, ...]], None]) -> None:
    """Tell ``change`` what a file asks for whenever that is something else; never returns.

    A file that cannot be read is told in the log, once, and changes nothing.
    """
    told: object = None
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        try:
            wanted: tuple[PairSource, ...] | str = read_pairs(path)
        except InvalidInput as error:
            wanted = str(error)
        if wanted == told:
            continue
        told = wanted
        if isinstance(wanted, str):
            logger.warning("the pairs stay as they are: %s", wanted)
        else:
            change(wanted)
