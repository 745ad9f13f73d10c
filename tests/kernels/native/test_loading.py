"""What a machine without native kernels is told."""

from __future__ import annotations

import importlib
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from qspec.kernels.native import NativeUnavailable, instruction_sets, load, loading


@pytest.fixture(autouse=True)
def loaded_anew() -> Iterator[None]:
    load.cache_clear()
    yield
    load.cache_clear()


def replace_extension(monkeypatch: pytest.MonkeyPatch, found: object) -> None:
    def import_module(_name: str) -> object:
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(importlib, "import_module", import_module)


@pytest.mark.parametrize(("found", "message"), [
    (ModuleNotFoundError("none"), r"no native kernels: install a C\+\+ compiler \(Debian package g\+\+\)"),
    (ImportError("undefined symbol: PyFoo"), r"do not load \(undefined symbol: PyFoo\)"),
    (SimpleNamespace(INTERFACE=-1), "built from another version"),
    (SimpleNamespace(), "built from another version"),
    (SimpleNamespace(INTERFACE=loading.INTERFACE, instruction_sets=list), "no native kernels for this CPU"),
])  # fmt: skip
def test_the_reason_is_one_line(monkeypatch: pytest.MonkeyPatch, found: object, message: str) -> None:
    replace_extension(monkeypatch, found)
    with pytest.raises(NativeUnavailable, match=message) as caught:
        load()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("processor", "message"), [
    ("riscv64", "^no native kernels for riscv64 processors: they are for x86-64 and AArch64$"),
    ("aarch64", r"install a C\+\+ compiler"),
])  # fmt: skip
def test_a_compiler_is_asked_for_only_where_there_are_sources(
    monkeypatch: pytest.MonkeyPatch, processor: str, message: str
) -> None:
    replace_extension(monkeypatch, ModuleNotFoundError("none"))
    monkeypatch.setattr(platform, "machine", lambda: processor)
    with pytest.raises(NativeUnavailable, match=message):
        load()


def test_an_instruction_set_that_the_cpu_lacks() -> None:
    assert loading.choose_instruction_set(None) == instruction_sets()[0]
    with pytest.raises(NativeUnavailable, match="this CPU does not have sve2; it has "):
        loading.choose_instruction_set("sve2")


def test_the_processors_are_those_of_the_build() -> None:
    build = (Path(loading.__file__).parent / "CMakeLists.txt").read_text(encoding="utf-8")
    patterns = re.findall(r'CMAKE_SYSTEM_PROCESSOR MATCHES "(.*)"', build)
    assert sorted("|".join(pattern.strip("^()$") for pattern in patterns).split("|")) == sorted(loading.PROCESSORS)
