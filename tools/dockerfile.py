"""Reading ``deploy/Dockerfile``: its stages, and the instructions of each."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from tools.check_imports import ROOT

DOCKERFILE = ROOT / "deploy" / "Dockerfile"


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction, its continued lines joined."""

    keyword: str
    text: str

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Names and values of an ENV."""
        for word in shlex.split(self.text):
            name, _, value = word.partition("=")
            yield name, value


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage: its name, what it stands on, and what it does."""

    name: str
    base: str
    instructions: tuple[Instruction, ...]


def read_dockerfile() -> dict[str, Stage]:
    """The stages by name, in the order of the file."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    stages: dict[str, Stage] = {}
    for line in text.replace("\\\n", " ").splitlines():
        keyword, _, rest = line.strip().partition(" ")
        if keyword == "FROM":
            base, _, name = rest.partition(" AS ")
            stages[name] = Stage(name, base, ())
        elif keyword and stages:
            last = stages[next(reversed(stages))]
            stages[last.name] = Stage(last.name, last.base, (*last.instructions, Instruction(keyword, rest.strip())))
    return stages


def final_stage(stages: dict[str, Stage], name: str) -> list[Instruction]:
    """All instructions of a stage, those of the stages that it stands on included."""
    stage = stages[name]
    return [*(final_stage(stages, stage.base) if stage.base in stages else []), *stage.instructions]


def image_user(stages: dict[str, Stage], name: str) -> str:
    """``UID:GID`` that a stage's image runs as: the last that its instructions say; raises ``LookupError`` for none."""
    users = [each.text for each in final_stage(stages, name) if each.keyword == "USER"]
    if not users:
        raise LookupError(f"no USER leads to the stage {name}")
    return users[-1]
