"""A drafter with a model of its own: its cache is right after every round, its vocabulary is the target's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qspec import QSPECModel, QuantizedModel, speculative_sampling
from qspec.api.sampling_functions import autoregressive_texts, speculative_texts
from qspec.api.text_request import TextRequest
from qspec.engine.cached_decoder import CachedDecoder
from qspec.engine.passes import SequenceRows
from qspec.engine.separate_drafter import SeparateDrafter
from qspec.errors import ContractViolation, EpochMismatch, InvalidInput
from qspec.interfaces import AcceptanceRule, DraftBatch, DraftItem, DraftResult, EarlyStop, Sampling, SlotOutcome
from qspec.sequence import Sequence
from tests.api.conftest import Loader
from tests.tiny_models import edit_config, write_tiny_model

PREFIX = torch.tensor([[5, 9, 5, 9, 5]])
GREEDY = TextRequest(max_len=40, gamma=4, temperature=0.0)
REJECTION = TextRequest(max_len=30, gamma=3, temperature=1.0)
PROMPT = tuple(range(3, 30))


@pytest.fixture(scope="module")
def twin(directory_of: Callable[[str], Path]) -> Iterator[QuantizedModel]:
    """The target's model loaded once more: what it drafts has to stand, or its cache is wrong."""
    with QuantizedModel(str(directory_of("llama")), kv_tokens=1024) as model:
        yield model


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every pass of a private cache."""
    counts: list[int] = []
    original = CachedDecoder.hidden

    def counted(self: CachedDecoder, sequences: list[SequenceRows]) -> Tensor:
        counts.append(sum(len(sequence.token_ids) for sequence in sequences))
        return original(self, sequences)

    monkeypatch.setattr(CachedDecoder, "hidden", counted)
    return counts


def decode(target: QuantizedModel, draft: QuantizedModel, lengths: list[int], prompt: tuple[int, ...]) -> Sequence:
    """Decode one sequence with a draft length for each round after the prompt's."""
    engines = target.engines
    engines.use_drafter(draft.drafter_for(engines))
    sequence = Sequence("0", list(prompt), 64, Sampling(), draft_length=0)
    engines.loop.add(sequence)
    engines.loop.step()
    for length in lengths:
        sequence.draft_length = length
        engines.loop.step()
    engines.loop.remove(sequence)
    engines.loop.step()
    assert engines.loop.drafter_error is None
    return sequence


def test_a_twin_agrees_in_every_round(load: Loader, twin: QuantizedModel) -> None:
    """Greedy and under both rules: a cache with a wrong entry anywhere would disagree."""
    for request in (
        GREEDY,
        TextRequest(max_len=40, gamma=3, temperature=1.0, random_seed=5),
        TextRequest(max_len=40, gamma=3, temperature=1.0),
    ):
        batch = speculative_texts(PREFIX.repeat(3, 1), twin, load("llama"), request)
        assert batch.acceptance is not None
        assert batch.acceptance > 0.97


def test_catching_up(load: Loader, twin: QuantizedModel, fed: list[int]) -> None:
    """The prompt at first, two tokens after a full acceptance, all that rounds without drafts have made."""
    sequence = decode(load("llama"), twin, [2, 2, 0, 0, 0, 3], PROMPT)
    assert sequence.stats.accepted == sequence.stats.drafted == 7, "or the counts below mean something else"
    assert fed == [
        len(PROMPT) + 1, 1,  # the prompt and the token that the first round made, then a draft
        2, 1,  # the last draft, which was never fed, and the bonus token
        2 + 3, 1, 1,  # the same, and one token for each round without drafts
    ]


def test_a_rejection_costs_one_token_to_catch_up(load: Loader, fed: list[int]) -> None:
    sequence = decode(load("llama"), load("gpt2"), [4, 4], PROMPT)
    assert sequence.stats.accepted == 0, "another random model agrees by chance only"
    assert fed == [len(PROMPT) + 1, 1, 1, 1, 1, 1, 1, 1]


def test_a_long_prompt_is_caught_up_on_in_chunks(load: Loader, fed: list[int]) -> None:
    with QuantizedModel(load("llama").name) as twin:
        engines = load("llama").engines
        drafter = twin.drafter_for(engines)
        engines.use_drafter(drafter)
        drafter._max_rows = 16
        sequence = decode(load("llama"), twin, [2], tuple(range(3, 63)))
        assert sequence.stats.accepted == 2
        assert fed[:3] == [16, 16, 16]
        assert sum(fed) == 61 + 1
        assert max(fed) <= 16


def test_a_full_cache_costs_time_and_no_token(load: Loader, twin: QuantizedModel) -> None:
    """Twelve rows want more blocks than the draft cache has; some are computed again, some do not draft."""
    target = load("llama")
    prefix = torch.arange(12).unsqueeze(1).repeat(1, 70) * 3 % 200 + 3
    expected = autoregressive_texts(prefix, target, GREEDY)
    drafter = twin.drafter_for(target.engines)
    target.engines.use_drafter(drafter)
    taken: list[int] = []
    assert drafter._blocks.extend(taken, drafter._blocks.free_blocks - 5)
    batch = speculative_texts(prefix, twin, target, GREEDY)
    assert torch.equal(batch.output_ids, expected.output_ids)
    assert batch.acceptance is not None
    drafter._blocks.release(taken)


def test_a_drafter_with_fewer_positions_stops_drafting(load: Loader, tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "short", "llama")
    edit_config(tmp_path / "short", {"max_position_embeddings": 24})
    with QuantizedModel(str(tmp_path / "short")) as short:
        assert short.max_length == 24
        sequence = decode(load("llama"), short, [4, 4, 4, 4, 4, 4, 4], tuple(range(3, 12)))
        assert sequence.stats.drafted < 24
        expected = autoregressive_texts(PREFIX, load("llama"), GREEDY).output_ids
        assert torch.equal(speculative_texts(PREFIX, short, load("llama"), GREEDY).output_ids, expected)


def test_changing_drafters_leaks_no_descriptor(pair: QSPECModel, load: Loader) -> None:
    """Every drafter maps the verifier's arena; whoever makes way has to let go of it."""
    def both() -> int:
        texts = [speculative_texts(PREFIX, draft, pair.verify, GREEDY) for draft in (load("gpt2"), pair.draft)]
        assert all(batch.acceptance is not None for batch in texts)
        return len(list(Path("/proc/self/fd").iterdir()))

    before = both()
    assert [both() for _ in range(3)] == [before] * 3


# ---- vocabularies ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", [GREEDY, REJECTION], ids=["greedy", "rejection"])
@pytest.mark.parametrize("rows", [304, 352])
def test_padded_embeddings_may_differ(load: Loader, tmp_path: Path, rows: int, request_: TextRequest) -> None:
    """One vocabulary, embeddings padded to 304 or 352 rows against the target's 320."""
    write_tiny_model(tmp_path / "padded", "gpt2", vocab_size=rows)
    with QuantizedModel(str(tmp_path / "padded")) as draft:
        prefix = torch.tensor([[5, 310, 9]])  # a token that the smaller embedding lacks: no draft, and no error
        texts = speculative_texts(prefix, draft, load("llama"), request_)
        assert (texts.acceptance is None) == (rows == 304)
        if request_ is GREEDY:
            assert torch.equal(texts.output_ids, autoregressive_texts(prefix, load("llama"), GREEDY).output_ids)
        # Sixteen rows: one may draw such a token at once, and then it drafts no more.
        assert speculative_texts(PREFIX.repeat(16, 1), draft, load("llama"), request_).acceptance is not None


def test_another_vocabulary_is_refused(load: Loader, tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "other", "gpt2")
    tokenizer = (tmp_path / "other" / "tokenizer.json").read_text("utf-8")
    (tmp_path / "other" / "tokenizer.json").write_text(tokenizer.replace('"a": 68', '"a": 69').replace(
        '"b": 69', '"b": 68').replace("<|im_start|>", "<|other|>"), "utf-8")
    with QuantizedModel(str(tmp_path / "other")) as draft:
        with pytest.raises(InvalidInput, match="approx_model: its vocabulary is not that of"):
            speculative_sampling(PREFIX, draft, load("llama"), 4)
        text = speculative_sampling(PREFIX, load("gpt2"), load("llama"), 4)
        assert text.shape[1] > PREFIX.shape[1], "and the target stays usable"


@pytest.mark.parametrize("rule", AcceptanceRule)
def test_penalties_see_the_same_history_as_the_verifier(
    load: Loader, twin: QuantizedModel, rule: AcceptanceRule
) -> None:
    sampling = Sampling(
        temperature=0.9, seed=5, rule=rule, repetition_penalty=1.3, presence_penalty=0.6, frequency_penalty=0.3,
        min_tokens=9, ending_token_ids=tuple(range(0, 300, 4)))

    def text(draft_length: int) -> Sequence:
        engines = load("llama").engines
        engines.use_drafter(twin.drafter_for(engines))
        sequence = Sequence("0", list(PROMPT), 30, sampling, draft_length=draft_length)
        engines.loop.add(sequence)
        while engines.loop.has_work:
            engines.loop.step()
        return sequence

    drafted = text(4)
    assert drafted.stats.accepted == drafted.stats.drafted > 15
    if rule is AcceptanceRule.COUPLED:
        assert drafted.tokens == text(0).tokens


# ---- the contract of a drafter --------------------------------------------------------------------------------------


def item(committed_len: int, pending: int, lease: int = 7) -> DraftItem:
    """A question about slot 0."""
    return DraftItem(
        slot=0, lease=lease, committed_len=committed_len, pending_token=pending, draft_length=2, sampling=Sampling())


def test_stale_questions_and_broken_promises(load: Loader) -> None:
    engines = load("llama").engines
    committed = {(0, 7): [5, 9, 5]}
    drafter = SeparateDrafter(load("gpt2").draft_model(), lambda slot, lease: committed.get((slot, lease)))
    description = drafter.attach(engines.description)
    assert [memory.shared for memory in description.memory] == [False]
    epoch = engines.description.epoch

    def ask(question: DraftItem) -> SlotOutcome:
        return drafter.draft(DraftBatch(epoch=epoch, round=1, items=(question,))).results[0].outcome

    assert ask(item(3, 5)) is SlotOutcome.OK
    assert ask(item(3, 5, lease=8)) is SlotOutcome.STALE
    assert ask(item(4, 5)) is SlotOutcome.STALE
    with pytest.raises(ContractViolation, match="pending token"):
        ask(item(3, 9))
    with pytest.raises(EpochMismatch):
        drafter.draft(DraftBatch(epoch=epoch + 1, round=1, items=()))
    drafter.detach(epoch + 1)
    assert ask(item(3, 5)) is SlotOutcome.OK
    drafter.detach(epoch)
    with pytest.raises(EpochMismatch):
        ask(item(3, 5))


def test_a_draft_may_end_early(load: Loader) -> None:
    engines = load("llama").engines
    drafter = SeparateDrafter(load("gpt2").draft_model(), lambda slot, lease: [5, 9, 5])
    drafter.attach(engines.description)

    def ask(rule: EarlyStop | None) -> DraftResult:
        batch = DraftBatch(
            epoch=engines.description.epoch, round=1, items=(replace(item(3, 5), draft_length=4, early_stop=rule),))
        return drafter.draft(batch).results[0]

    whole = ask(None)
    never = EarlyStop(least_drawn=0.0, least_fed=0.0, intercept=0.0, slope=1.0)
    for rule, length, seen in (
        (never, 4, 4), (replace(never, least_drawn=1.0, intercept=-9.0), 0, 1), (replace(never, least_fed=1.0), 1, 1),
    ):
        ended = ask(rule)
        assert ended.outcome is SlotOutcome.OK
        assert ended.draft_tokens == whole.draft_tokens[:length]
        assert len(ended.confidences) == seen
    drafter.close()
