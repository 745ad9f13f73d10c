"""What a rehearsal of an image would do, without doing it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tools.check_imports import ROOT
from tools.dockerfile import Instruction, Stage, image_user, read_dockerfile
from tools.rehearse_image import Root, copy, needed

STAGES = {"cpu": ["wheel", "cpu-packages", "runtime", "cpu"], "gpu": ["wheel", "gpu-packages", "runtime", "gpu"]}


@pytest.mark.parametrize("target", STAGES)
def test_each_image_is_made_of_its_own_stages_and_tried_as_its_user(target: str) -> None:
    stages = read_dockerfile()
    assert [stage.name for stage in needed(stages, target)] == STAGES[target]
    assert image_user(stages, target) == "10001:10001"


def test_the_last_user_counts() -> None:
    base = Stage("base", "scratch", (Instruction("USER", "1:1"),))
    stages = {"base": base, "next": Stage("next", "base", ()), "other": Stage("other", "scratch", ())}
    assert image_user(stages, "next") == "1:1"
    stages["next"] = Stage("next", "base", (Instruction("USER", "0:0"), Instruction("USER", "2:2")))
    assert image_user(stages, "next") == "2:2"
    with pytest.raises(LookupError, match="other"):
        image_user(stages, "other")


def test_nothing_is_written_outside_a_root(tmp_path: Path) -> None:
    (root := tmp_path / "root").mkdir()
    (root / "out").symlink_to(tmp_path)
    stage = Root(root, [], workdir="/build")
    assert stage.inside("x") == root / "build" / "x"
    assert stage.inside("/opt/qspec") == root / "opt" / "qspec"
    with pytest.raises(ValueError, match="leads out of its root"):
        stage.inside("/out/x")


def test_copies_as_the_instruction_does(tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "file").write_text("content")
    (tmp_path / "to").mkdir()
    copy(tmp_path / "from", tmp_path / "to", into=False)
    copy(tmp_path / "from" / "file", tmp_path / "to" / "renamed", into=False)
    copy(tmp_path / "from" / "file", tmp_path / "to", into=True)
    assert {path.name for path in (tmp_path / "to").iterdir()} == {"file", "renamed"}


def test_a_target_that_does_not_exist_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.rehearse_image", "tpu"], cwd=ROOT, capture_output=True, text=True, timeout=60,
        check=False)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith("usage: ")
