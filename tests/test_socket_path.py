"""Places for sockets are refused in one line, whoever they belong to."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from qspec.errors import InvalidInput
from qspec.socket_path import check_private_directory, check_socket_place, make_private_directory

OTHER = 12345
Check = Callable[[Path, str], object]


@pytest.fixture
def other_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there belongs to somebody else."""
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)


def refusal(check: Check, path: Path) -> str:
    with pytest.raises(InvalidInput) as caught:
        check(path, "somewhere")
    (violation,) = caught.value.violations
    assert violation.field == "somewhere" and "\n" not in violation.description
    return violation.description


def test_a_private_directory_is_made_once_and_then_used(tmp_path: Path) -> None:
    assert make_private_directory(tmp_path / "made", "somewhere")
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o700
    assert not make_private_directory(tmp_path / "made", "somewhere")
    check_private_directory(tmp_path / "made", "somewhere")


@pytest.mark.parametrize("check", [check_private_directory, make_private_directory])
def test_another_users_directory_is_refused(check: Check, tmp_path: Path, other_user: None) -> None:
    owner = tmp_path.stat().st_uid
    assert refusal(check, tmp_path).startswith(f"{tmp_path} belongs to uid {owner} and this process runs as uid ")


@pytest.mark.parametrize("check", [check_private_directory, make_private_directory])
def test_an_open_directory_is_refused(check: Check, tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    assert refusal(check, tmp_path) == f"{tmp_path} is open to other users; chmod 700 it"


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert refusal(make_private_directory, tmp_path / "file").endswith("file is no directory; choose another path")
    assert "cannot be made: Not a directory" in refusal(make_private_directory, tmp_path / "file" / "below")
    assert "does not exist; create it with mode 0700" in refusal(check_private_directory, tmp_path / "none")


def test_places_for_sockets(tmp_path: Path) -> None:
    check_socket_place(tmp_path / "none", "somewhere")
    with socket.socket(socket.AF_UNIX) as there:
        there.bind(str(tmp_path / "there"))
        check_socket_place(tmp_path / "there", "somewhere")
    (tmp_path / "file").touch()
    assert "exists and is no socket" in refusal(check_socket_place, tmp_path / "file")
    assert "is no directory" in refusal(check_socket_place, tmp_path / "file" / "below")
    assert "does not exist" in refusal(check_socket_place, tmp_path / "none" / "below")


_AS_OTHER = """
import os, sys
from pathlib import Path
from qspec.errors import InvalidInput
from qspec.socket_path import check_socket_place
os.setgid(int(sys.argv[1]))
os.setuid(int(sys.argv[1]))
for path in sys.argv[2:]:
    try:
        check_socket_place(Path(path), "somewhere")
    except InvalidInput as error:
        print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_user_is_told_what_it_may_not_do() -> None:
    """Nothing of this raises what is no deliberate error (``Path.exists`` does, in a directory of somebody else's)."""
    with tempfile.TemporaryDirectory(prefix="qspec-") as name:  # of its own: pytest's may be entered by its user only
        (place := Path(name)).chmod(0o755)
        (place / "locked" / "in").mkdir(parents=True)
        (place / "locked").chmod(0o700)
        (place / "readable").mkdir()
        paths = [str(place / path) for path in ("locked/s", "locked/in/s", "readable/s")]
        done = subprocess.run(
            [sys.executable, "-c", _AS_OTHER, str(OTHER), *paths], capture_output=True, text=True, timeout=60,
            check=True)
    assert done.stdout.splitlines() == [
        f"somewhere: uid {OTHER} may make no socket in {place}/locked; choose another place",
        f"somewhere: the directory {place}/locked/in cannot be used: Permission denied",
        f"somewhere: uid {OTHER} may make no socket in {place}/readable; choose another place",
    ]
