"""Carries out ``deploy/Dockerfile`` without a container engine: ``python -m tools.rehearse_image TARGET``.

Every stage gets a root of its own: an overlay over this machine's root, or over the stage that it stands on, in a mount
namespace and in memory. They vanish with the namespace; nothing is ever removed recursively, because a mount of this
machine's could lie below. RUN, COPY, ENV, ARG and WORKDIR are carried out as they stand, RUN as root. In the end the
image's programs are tried as the image's user. What differs from a build is the base image, whose part this machine
plays (Debian with Python). Linux, root and the package indexes are needed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from tools.check_imports import ROOT
from tools.dockerfile import Instruction, Stage, image_user, read_dockerfile

_DEVICES = ("null", "zero", "full", "random", "urandom")
_TRIAL = """
import os, sys
from pathlib import Path
from qspec.kernels.native import load
load()
assert sys.prefix == "/opt/qspec", sys.prefix
(Path(os.environ["QSPEC_CACHE_DIR"]) / "written").touch()
"""
_IGNORED = shutil.ignore_patterns("__pycache__", "*.so")


@dataclass(slots=True)
class Root:
    """The root of a stage."""

    directory: Path
    layers: list[Path]
    """What it stands on, the nearest first, without this machine's root."""
    environment: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"

    def inside(self, path: str) -> Path:
        """A path of the stage as this process sees it.

        Raises ``ValueError`` where a symbolic link of the stage's leads out of it: this process is not in the root, and
        would write to the machine's own files.
        """
        seen = self.directory / (Path(self.workdir) / path).relative_to("/")
        if not seen.resolve().is_relative_to(self.directory.resolve()):
            raise ValueError(f"{path} of the stage leads out of its root, to {seen.resolve()}")
        return seen

    def run(self, *command: str, user: str | None = None) -> None:
        """Run a command in the root; raises ``CalledProcessError``."""
        inherited = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "PATH"))}
        environment = {"HOME": "/root", **inherited, **self.environment}
        environment["PATH"] = self.environment.get("PATH", "$PATH").replace("$PATH", inherited["PATH"])
        drop = [] if user is None else [f"--userspec={user}"]
        shell = 'cd "$0" && exec "$@"'
        subprocess.run(
            ["chroot", *drop, str(self.directory), "/bin/sh", "-c", shell, self.workdir, *command],
            env=environment, check=True)


def make_root(stage: Stage, roots: dict[str, Root], scratch: Path) -> Root:
    """Mount the root of ``stage``."""
    base = roots.get(stage.base)
    layers = [] if base is None else [scratch / stage.base / "upper", *base.layers]
    place = scratch / stage.name
    for name in ("upper", "work", "root"):
        (place / name).mkdir(parents=True)
    lower = ":".join([*map(str, layers), "/"])
    options = f"lowerdir={lower},upperdir={place}/upper,workdir={place}/work"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(place / "root")], check=True)
    subprocess.run(["mount", "-t", "proc", "proc", str(place / "root" / "proc")], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(place / "root" / "dev")], check=True)
    for name in _DEVICES:
        (place / "root" / "dev" / name).touch()
        subprocess.run(["mount", "--bind", f"/dev/{name}", str(place / "root" / "dev" / name)], check=True)
    (place / "root" / "tmp").chmod(0o1777)
    (place / "root" / "root").chmod(0o755)  # this machine's Python may lie there, and the image's user has to reach it
    if base is None:
        return Root(place / "root", layers)
    return Root(place / "root", layers, dict(base.environment), base.workdir)


def carry_out(step: Instruction, root: Root, roots: dict[str, Root]) -> None:
    """Do what one instruction says; those about the container's start change nothing here."""
    if step.keyword == "RUN":
        root.run("/bin/sh", "-c", step.text)
    elif step.keyword in ("ENV", "ARG"):
        root.environment |= dict(step.pairs())
    elif step.keyword == "WORKDIR":
        root.workdir = step.text
        root.inside(".").mkdir(parents=True, exist_ok=True)
    elif step.keyword == "COPY":
        *sources, target = step.text.split()
        start = ROOT
        if sources[0].startswith("--from="):
            start = roots[sources.pop(0).removeprefix("--from=")].directory
        for source in sources:
            copy(start / source.lstrip("/"), root.inside(target), into=target.endswith("/"))


def copy(source: Path, target: Path, *, into: bool) -> None:
    """Copy a file into a directory, or a directory's content to one, as COPY does."""
    if source.is_dir():
        ignored = _IGNORED if source.is_relative_to(ROOT) else None
        shutil.copytree(source, target, symlinks=True, ignore=ignored, dirs_exist_ok=True)
    else:
        shutil.copy2(source, target / source.name if into else target)


def rehearse(target: str, scratch: Path) -> None:
    """Carry out the stages that ``target`` needs below ``scratch``, then try the image's programs as its user."""
    stages = read_dockerfile()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(scratch)], check=True)
    roots: dict[str, Root] = {}
    for stage in needed(stages, target):
        roots[stage.name] = make_root(stage, roots, scratch)
        for step in stage.instructions:
            print(f"{stage.name}: {step.keyword} {step.text}", file=sys.stderr)
            carry_out(step, roots[stage.name], roots)
    user = image_user(stages, target)
    for program in ("coordinator", "verifier", "drafter"):
        roots[target].run("/bin/sh", "-c", f"python -m {program} --help > /dev/null", user=user)
    roots[target].run("python", "-c", _TRIAL, user=user)


def needed(stages: dict[str, Stage], target: str) -> list[Stage]:
    """The stages that ``target`` stands on or copies from, in the order of the file, and itself."""
    wanted = {target}
    for stage in reversed(stages.values()):
        if stage.name in wanted:
            sources = {
                each.text.split()[0].removeprefix("--from=") for each in stage.instructions
                if each.keyword == "COPY" and each.text.startswith("--from=")
            }
            wanted |= {stage.base, *sources}
    return [stage for stage in stages.values() if stage.name in wanted]


def main() -> int:
    """Enter a mount namespace, and rehearse there."""
    target, scratch = [*sys.argv[1:], "", ""][:2]
    if target not in read_dockerfile():
        print("usage: python -m tools.rehearse_image cpu|gpu", file=sys.stderr)
        return 2
    if scratch:
        rehearse(target, Path(scratch))
        print(f"{target}: every step was carried out", file=sys.stderr)
        return 0
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("unshare") is None:
        print("SKIPPED: rehearsing an image needs Linux, root and unshare", file=sys.stderr)
        return 0
    scratch = tempfile.mkdtemp(prefix="qspec-image-")
    try:
        command = ["unshare", "--mount", "--", sys.executable, "-m", "tools.rehearse_image", target, scratch]
        return subprocess.run(command, cwd=ROOT, check=False).returncode
    finally:
        Path(scratch).rmdir()  # empty: what was mounted there was seen by the namespace alone


if __name__ == "__main__":
    sys.exit(main())
