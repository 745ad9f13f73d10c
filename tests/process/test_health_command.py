"""``python -m qspec health``: what the probes of containers ask."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from qspec.__main__ import main
from qspec.errors import InvalidInput
from tests.fakes import FakeDrafter
from tests.served import served_drafter


def test_a_server_that_serves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with served_drafter(FakeDrafter, tmp_path) as address:
        deadline = time.monotonic() + 10
        while main(["health", address]) != 0:
            assert time.monotonic() < deadline
        capsys.readouterr()
        assert main(["health", address]) == 0
        assert capsys.readouterr() == ("", "")


def test_nobody_answers(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "qspec", "health", f"unix:{tmp_path}/none.sock", "--timeout=0.2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"not serving: unix:{tmp_path}/none.sock: nobody answers there (No such file or directory)\n")


def test_no_address() -> None:
    with pytest.raises(InvalidInput, match="is no address"):
        main(["health", "nonsense"])


def test_a_probe_imports_no_tensor_library() -> None:
    """It runs every few seconds in each container."""
    code = "import sys; from qspec.__main__ import main; main(['health', 'unix:/x', '--timeout=0.1']); " \
        "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False).returncode == 0
