"""The run of llama.cpp: what its process is asked, what it answers, and what is refused before."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks.gguf_encoding import ENCODINGS
from benchmarks.llama_cpp_process import generate
from benchmarks.llama_cpp_run import Job, check_llama_cpp, run_in_process, run_llama_cpp
from benchmarks.memory import ProcessMemory
from qspec.errors import InvalidInput, QspecError
from tests.benchmarks.fake_llama_cpp import write_fake_llama_cpp
from tests.benchmarks.texts import plain_sample
from tests.models.tiny_gguf import write_tiny_gguf

MEMORY = ProcessMemory(pid=1, program="benchmarks.llama_cpp_process", proportional=3, resident=4, private=2)


class Counter:
    """Counts upwards from the prompt's last token."""

    def __init__(self) -> None:
        self.resets = 0

    def reset(self) -> None:
        """Counted, too."""
        self.resets += 1

    def generate(self, tokens: Sequence[int], *, temp: float) -> Iterator[int]:
        """No end."""
        assert temp == 0
        yield from range(tokens[-1] + 1, 1 << 30)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tiny GGUF file, and a cache of the test's own."""
    monkeypatch.setenv("QSPEC_CACHE_DIR", str(tmp_path / "cache"))
    write_tiny_gguf(tmp_path / "model.gguf", "llama")
    return str(tmp_path / "model.gguf")


def test_a_text_ends_at_its_length_or_after_an_end_token() -> None:
    counter = Counter()
    assert generate(counter, [5, 9], 4, [2]).token_ids == (10, 11, 12, 13)
    sample = generate(counter, [5, 9], 4, [2, 12])
    assert sample.token_ids == (10, 11, 12)
    assert sample.prompt_tokens == 2
    assert 0 <= sample.first_token_s <= sample.total_s <= sample.wall_s
    assert counter.resets == 2  # nothing of the prompt is left from the text before


def test_each_encoding_gets_the_same_job_on_its_own_file(model: str) -> None:
    jobs: list[Job] = []

    def runner(job: Job) -> dict[str, object]:
        jobs.append(job)
        sample = replace(plain_sample((7, 8, 9)), speculation=None)
        return {"samples": [asdict(sample)], "load_s": 0.5, "memory": asdict(MEMORY), "version": "1", "system": "CPU"}

    runs = run_llama_cpp(model, [(1, 5, 6)], max_tokens=3, threads=2, tell=lambda _text: None, runner=runner)
    assert tuple(run.encoding for run in runs) == ENCODINGS
    files = [Path(str(job["file"])) for job in jobs]
    assert [run.file_bytes for run in runs] == [file.stat().st_size for file in files]
    assert [file.stem.rpartition("-")[2] for file in files] == list(ENCODINGS)
    for job in jobs:
        assert (job["prompts"], job["max_tokens"], job["threads"], job["end_tokens"]) == ([[1, 5, 6]], 3, 2, [2])
    assert runs[0].samples[0].token_ids == (7, 8, 9)
    assert runs[0].memory == MEMORY


def test_the_process_answers(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_fake_llama_cpp(tmp_path / "packages")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))
    runs = run_llama_cpp(model, [(1, 5, 6), (1, 7)], max_tokens=4, threads=1, tell=lambda _text: None)
    for run in runs:
        assert [sample.token_ids for sample in run.samples] == [(7, 8, 9, 10), (8, 9, 10, 11)]
        assert run.memory.program == "benchmarks.llama_cpp_process"
        assert 0 < run.memory.private <= run.memory.proportional <= run.memory.resident
        assert (run.version, run.system) == ("0.0.1", "CPU : FAKE = 1 |")


def test_a_process_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_fake_llama_cpp(tmp_path / "packages")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))
    job = {"file": "/nowhere.gguf", "encoding": "F16", "prompts": [[1]], "max_tokens": 2, "threads": 1,
           "end_tokens": [2]}
    with pytest.raises(QspecError, match="llama.cpp run ended with exit code 1"):
        run_in_process(job)


def test_the_package_is_asked_for_before_anything_starts(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(InvalidInput, match="pip install --constraint constraints.txt llama-cpp-python"):
        check_llama_cpp(model)
    monkeypatch.delitem(sys.modules, "llama_cpp")
    write_fake_llama_cpp(tmp_path / "packages")
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    check_llama_cpp(model)
