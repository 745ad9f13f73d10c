"""What a container runtime does inside a new mount namespace, then the container's command in its place.

``python -m tests.deploy.rehearsal.container_init SPEC`` (a ``ContainerSpec`` as JSON) gives the process a root that is
this machine's, read-only, under the container's volumes, devices and 64 MiB of /dev/shm, with the image's user in
/etc/passwd; takes every capability from it and makes it the container's user. Runs as root.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tools.check_imports import ROOT

_DEVICES = ("null", "zero", "full", "random", "urandom")
_USER = "qspec:x:{uid}:{gid}::{home}:/usr/sbin/nologin\n"
_OWN_MOUNTS = ("/", "/proc", "/sys", "/dev", "/tmp", "/run")
"""Mounts of this machine that the container has others of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A volume in a container."""

    source: str
    path: str
    read_only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """What a container is made of."""

    scratch: str
    """An empty directory of its own."""
    mounts: tuple[Mount, ...]
    devices: tuple[str, ...]
    """Beside those that every container has."""
    environment: dict[str, str]
    uid: int
    gid: int
    groups: tuple[int, ...]
    command: tuple[str, ...]

    def to_json(self) -> str:
        """For ``from_json``."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ContainerSpec:
        """Reverses ``to_json``."""
        fields = json.loads(text)
        fields["mounts"] = tuple(Mount(**mount) for mount in fields["mounts"])
        for name in ("devices", "groups", "command"):
            fields[name] = tuple(fields[name])
        return cls(**fields)

    def as_user(self) -> list[str]:
        """The words before a command that take everything from it that "restricted" takes."""
        return [
            "setpriv", f"--reuid={self.uid}", f"--regid={self.gid}", "--groups=" + ",".join(map(str, self.groups)),
            "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--"]


def make_root(spec: ContainerSpec) -> Path:
    """Mount the container's root below its scratch directory."""
    scratch = Path(spec.scratch)
    _mount("-t", "tmpfs", "tmpfs", str(scratch))
    root, upper, work = (scratch / name for name in ("root", "upper", "work"))
    for directory in (root, upper, work):
        directory.mkdir()
    upper.chmod(0o755)
    _mount("-t", "overlay", "overlay", "-o", f"lowerdir=/,upperdir={upper},workdir={work}", str(root))
    for place in _other_mounts():
        _mount("--bind", place, str(root / place.lstrip("/")))
    _mount("-t", "proc", "proc", str(root / "proc"))
    _mount("-t", "sysfs", "-o", "ro", "sysfs", str(root / "sys"))
    _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(root / "dev"))
    for device in (*_DEVICES, *spec.devices):
        (root / "dev" / device).parent.mkdir(parents=True, exist_ok=True)
        (root / "dev" / device).touch()
        _mount("--bind", f"/dev/{device}", str(root / "dev" / device))
    (root / "dev" / "fd").symlink_to("/proc/self/fd")
    (root / "dev" / "shm").mkdir()
    _mount("-t", "tmpfs", "-o", "size=64m,mode=1777", "tmpfs", str(root / "dev" / "shm"))
    for directory in _way_to_python():  # in an image everybody may read it
        if (inside := _inside(root, directory)).stat().st_dev == root.stat().st_dev:  # no mount of this machine's
            inside.chmod(0o755)
    if (etc := root / "etc").stat().st_dev == root.stat().st_dev:
        with (etc / "passwd").open("a", encoding="utf-8") as users:
            users.write(_USER.format(uid=spec.uid, gid=spec.gid, home=spec.environment["HOME"]))
    for mount in spec.mounts:
        _bind(mount.source, _inside(root, Path(mount.path)), read_only=mount.read_only)
    volumes = [Path(place) for place in ("/tmp", "/run", *(mount.path for mount in spec.mounts))]
    for place in python_places():
        if any(place.is_relative_to(volume) for volume in volumes):  # which hides it
            _bind(str(place), _inside(root, place), read_only=True)
    _mount("-o", "remount,ro", str(root))
    return root


def _inside(root: Path, place: Path) -> Path:
    return root / str(place).lstrip("/")


def _bind(source: str, place: Path, *, read_only: bool) -> None:
    place.mkdir(parents=True, exist_ok=True)
    _mount("--bind", source, str(place))
    if read_only:
        _mount("-o", "remount,bind,ro", str(place))


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def _other_mounts() -> Iterator[str]:
    """What an overlay over this machine's root does not show: drivers' libraries, say."""
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        place = line.split()[4]
        if place not in _OWN_MOUNTS and not place.startswith(tuple(f"{each}/" for each in _OWN_MOUNTS[1:])):
            yield place


def package_places() -> list[Path]:
    """This repository, and where this process was told to look for packages."""
    return [ROOT, *(Path(place).resolve() for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place)]


def python_places() -> set[Path]:
    """The interpreter's, and those of its packages."""
    return {Path(sys.prefix), Path(sys.base_prefix), *package_places()}


def _way_to_python() -> Iterator[Path]:
    """Directories that only their owner may enter on the way to the interpreter, its packages and this repository."""
    for end in python_places():
        for directory in (end, *end.parents):
            if directory.stat().st_mode & 0o005 != 0o005:
                yield directory


def main() -> None:
    """Become the container's command."""
    spec = ContainerSpec.from_json(sys.argv[1])
    os.chroot(make_root(spec))
    os.chdir("/")
    os.umask(0o022)
    command = [*spec.as_user(), *spec.command]
    os.execvpe(command[0], command, spec.environment)


if __name__ == "__main__":
    main()
