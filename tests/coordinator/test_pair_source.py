"""Which pairs are asked for, on the command line and in a file, and which GPU each of them gets."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

import coordinator.pair_source
from coordinator.agreement import Agreement
from coordinator.pair_environment import PairEnvironments
from coordinator.pair_source import PairSource, given_pairs, read_pairs, watch_pairs
from qspec.config import StackConfig
from qspec.errors import InvalidInput
from qspec.gpus import visible_gpus
from tests.fakes import FakeVerifier

OWN = PairSource()
V, W, D, E = "unix:/a/v", "unix:/b/v", "unix:/a/d", "unix:/b/d"


@pytest.mark.parametrize(
    ("pairs", "verifiers", "drafters", "expected"),
    [
        (None, [], [], (OWN,)),
        (3, [], [], (OWN, OWN, OWN)),
        (None, [V], [], (PairSource(verifier=V),)),
        (None, [], [D], (PairSource(drafter=D),)),
        (None, [V, W], [D, E], (PairSource(verifier=V, drafter=D), PairSource(verifier=W, drafter=E))),
        (None, [V, W], [], (PairSource(verifier=V), PairSource(verifier=W))),
    ],
)
def test_pairs_of_a_command_line(
    pairs: int | None, verifiers: Sequence[str], drafters: Sequence[str], expected: tuple[PairSource, ...]
) -> None:
    assert given_pairs(pairs, verifiers, drafters) == expected


@pytest.mark.parametrize(
    ("pairs", "verifiers", "drafters", "message"),
    [
        (0, [], [], "pairs: must be from 1 to 64, got 0"),
        (65, [], [], "pairs: must be from 1 to 64, got 65"),
        (2, [V], [D], "pairs: is for workers of the server's own"),
        (None, [V, W], [D], "drafter: 1 for 2 verifiers"),
        (None, [V], [D, E], "drafter: 2 for 1 verifiers"),
        (None, [V, V], [D, E], "verifier: has the same address twice"),
        (None, ["nonsense"], [], "verifier: 'nonsense' is no address"),
    ],
)
def test_pairs_that_cannot_be_meant_are_refused(
    pairs: int | None, verifiers: Sequence[str], drafters: Sequence[str], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        given_pairs(pairs, verifiers, drafters)


def test_a_file_names_pairs(tmp_path: Path) -> None:
    file = tmp_path / "pairs"
    file.write_text(f"# the pairs\nown\n\n{V} {D}\n  {W}\nown\n")
    assert read_pairs(file) == (OWN, PairSource(verifier=V, drafter=D), PairSource(verifier=W), OWN)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# none\n", "names 0 pairs; give from 1 to 64"),
        ("own\n" * 65, "names 65 pairs"),
        (f"own\n{V} {D} {E}\n", "pairs_file, line 2: must be own, or VERIFIER"),
        ("own own", "pairs_file, line 1: 'own' is no address"),
        (f"{V}\nown\n{V}\n", "pairs_file, line 3: is there twice"),
    ],
)
def test_a_file_that_cannot_be_meant_names_the_line(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "pairs"
    file.write_text(text)
    with pytest.raises(InvalidInput, match=message):
        read_pairs(file)
    with pytest.raises(InvalidInput, match="pairs_file: cannot read"):
        read_pairs(tmp_path / "missing")


def test_a_file_is_read_again_when_it_changes_and_one_that_is_broken_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(coordinator.pair_source, "LOOK_EVERY_S", 0.01)
    file = tmp_path / "pairs"
    told: list[tuple[PairSource, ...]] = []

    async def write(text: str, count: int) -> None:
        file.write_text(text)
        while len(told) < count:
            await asyncio.sleep(0.01)

    async def test() -> None:
        watching = asyncio.ensure_future(watch_pairs(file, told.append))
        await write("own\n", 1)
        file.write_text("nonsense\n")
        await asyncio.sleep(0.1)
        await write("own\nown\n", 2)
        watching.cancel()

    asyncio.run(asyncio.wait_for(test(), 10))
    assert told == [(OWN,), (OWN, OWN)]
    assert len(caplog.messages) == 1 and "the pairs stay as they are: pairs_file, line 1" in caplog.messages[0]


class FakeNvml:
    """Three GPUs."""

    class NVMLError(Exception):
        """What the library raises."""

    def nvmlInit(self) -> None:
        """Always works."""

    def nvmlDeviceGetCount(self) -> int:
        """Three."""
        return 3

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        """Their numbers."""
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        """Their names."""
        return f"GPU-{handle}"


@pytest.mark.parametrize(
    ("listed", "seen"),
    [(None, ["GPU-0", "GPU-1", "GPU-2"]), ("2,0", ["GPU-2", "GPU-0"]), ("GPU-1", ["GPU-1"]), ("", []),
     ("1,-1,2", ["GPU-1"]), ("0,7,2", ["GPU-0"])],
)
def test_gpus_are_those_that_a_program_would_see(listed: str | None, seen: list[str]) -> None:
    assert visible_gpus({} if listed is None else {"CUDA_VISIBLE_DEVICES": listed}, FakeNvml()) == seen


def test_every_pair_has_a_gpu_of_its_own_as_long_as_it_is_there(tmp_path: Path) -> None:
    config = StackConfig(device="cuda", draft_quantization="off")
    environments = PairEnvironments(
        config, several=True, tell=lambda text: None, find_gpus=lambda: ["GPU-a", "GPU-b"])
    with environments.of(OWN, tmp_path) as first:
        with environments.of(OWN, tmp_path) as second:
            assert [first, second] == [{"CUDA_VISIBLE_DEVICES": "GPU-a"}, {"CUDA_VISIBLE_DEVICES": "GPU-b"}]
            with pytest.raises(InvalidInput, match="pairs: every GPU has a pair already"), environments.of(
                OWN, tmp_path
            ):
                pass
            with environments.of(PairSource(verifier=V), tmp_path) as foreign:
                assert foreign == {}
        with environments.of(OWN, tmp_path) as third:
            assert third == second
    single = PairEnvironments(config, several=False, tell=lambda text: None, find_gpus=list)
    with single.of(OWN, tmp_path) as only:
        assert only == {}


def test_a_verifier_that_differs_from_the_first_one_is_refused() -> None:
    agreement = Agreement()
    first = FakeVerifier().describe()
    assert agreement.join(first) is first
    assert agreement.join(FakeVerifier().describe()) is first, "another epoch is nothing to a text"
    with pytest.raises(InvalidInput, match="max_model_len: the verifier has another longest sequence .*: 128, not 256"):
        agreement.join(FakeVerifier(max_model_len=128).describe())
    with pytest.raises(InvalidInput, match="verify_quantization: the verifier has int8, and texts were begun as toy"):
        agreement.join(FakeVerifier(methods=("toy", "int8")).describe())
    assert agreement.first is first
