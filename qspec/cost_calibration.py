"""Warm-up: which calls to time on made-up sequences, and the cost table that follows from the times.

One sequence shows what a row, a draft step and a row of its prompt cost, several what they cost in a batch, and long
prompts what a cached position adds. The first are always measured; batches and long prompts as far as a fraction of a
second goes, and many long prompts at once where they take no more than that by themselves, so that a small machine does
not keep anyone waiting. Everything is measured twice, since the first call of its kind warms kernels up or captures a
graph, and of several times of one call the smallest counts: whatever else happens on a machine makes calls longer,
never shorter.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from qspec.cost_table import CalibratedCosts, CostTable, Points
from qspec.interfaces import Sampling, VerifierDescription
from qspec.sequence import Sequence as Text
from qspec.speculation import SpeculationLoop

_BUDGET_S = 0.4
"""Seconds after which no further batch and no long prompt is begun."""
_TIMES = 2
"""How often each run is made: a budget may end between two runs, never within one that was made once."""
_PROMPT = 32
"""Tokens of a made-up prompt."""
_SHORT_PROMPT = 4
_LONG_PROMPTS = (256, 1024)
_LONG_BATCH = 16
"""Sequences with the shorter of these at once, last of all: where calls take milliseconds and jitter as much, a single
one does not tell what cached positions cost."""
_BATCHES = (4, 16)
"""Sequences at once, besides all that there are slots for."""
_FURTHER = 1.5
"""By how many times more positions a pair of calls has to differ to tell better what one costs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmUpRun:
    """A few rounds of so many made-up sequences, each with ``prompt`` tokens and a fixed draft length."""

    sequences: int = 1
    draft_length: int
    prompt: int = _PROMPT

    @property
    def rows(self) -> int:
        """Rows that its prompts have."""
        return self.sequences * self.prompt

    def passes(self, about: VerifierDescription) -> int:
        """Verify passes that enter its prompts, at the least."""
        return -(-self.rows // about.max_batch_rows)

    @property
    def many_positions(self) -> bool:
        """Whether it is there to tell what cached positions cost, where that is quick."""
        return self.sequences > 1 and self.prompt > _PROMPT


def calibrate(loop: SpeculationLoop, progress: Callable[[str, float | None], None]) -> None:
    """Measure draft and verify calls, and give the loop's policy a new cost table. Must run while no sequence does."""
    longest = loop.policy.longest if loop.drafter_attached else 0
    necessary = necessary_runs(longest)
    runs = (*necessary, *further_runs(longest, loop.description))
    loop.cost_recorder = recorder = CostRecorder()
    deadline = float("inf")
    try:
        for index, run in enumerate(runs):
            if index == len(necessary):
                deadline = loop.clock() + _BUDGET_S
            if run.many_positions:
                in_time = run.rows * recorder.prefill_row_s <= _BUDGET_S
            else:
                in_time = loop.clock() <= deadline
            if not in_time:
                continue
            progress("measuring draft and verify steps", index / len(runs))
            for _ in range(_TIMES):
                make_run(loop, run)
        loop.policy.costs = CostTable(recorder.fit())
    finally:
        loop.cost_recorder = None


def necessary_runs(longest: int) -> tuple[WarmUpRun, ...]:
    """One sequence at a few draft lengths; ``longest`` is 0 where nothing drafts."""
    lengths = sorted({length for length in (0, 1, 2, 4, longest) if length <= longest})
    return tuple(WarmUpRun(draft_length=length) for length in lengths)


def further_runs(longest: int, description: VerifierDescription) -> tuple[WarmUpRun, ...]:
    """Batches and long prompts, by turns and growing, as the verifier's limits allow."""
    made = 4 * (longest + 1)  # more than the rounds can make, drafts included
    prompt = max(min(_SHORT_PROMPT, description.max_model_len - 1), 1)
    most = _room(prompt + made, description)
    sizes = sorted({size for size in (*_BATCHES, most) if 1 < size <= most})
    batches = [
        [WarmUpRun(sequences=size, draft_length=length, prompt=prompt) for length in sorted({0, longest})]
        for size in sizes
    ]
    held = min(description.max_model_len, description.num_blocks * description.block_size)
    prompts = [
        [WarmUpRun(draft_length=length, prompt=long) for length in sorted({0, longest})]
        for long in _LONG_PROMPTS if long + made <= held
    ]
    by_turns: Iterable[tuple[list[WarmUpRun], ...]] = itertools.zip_longest(batches, prompts, fillvalue=[])
    return (*(run for pair in by_turns for runs in pair for run in runs), *_long_batches(longest, made, description))


def _long_batches(longest: int, made: int, description: VerifierDescription) -> tuple[WarmUpRun, ...]:
    """Many long prompts at once; ``made``: the most tokens that each may go on for."""
    prompt = _LONG_PROMPTS[0]
    runs = tuple(
        WarmUpRun(sequences=_LONG_BATCH, draft_length=length, prompt=prompt) for length in sorted({0, longest}))
    tokens = prompt + made + runs[0].passes(description)  # one in each pass in which others are being entered
    fit = _room(tokens, description) >= _LONG_BATCH and tokens <= description.max_model_len
    return runs if fit else ()


def _room(tokens: int, description: VerifierDescription) -> int:
    """Sequences of so many tokens that the verifier has slots and blocks for."""
    blocks = -(-tokens // description.block_size)
    return min(description.max_slots, description.num_blocks // blocks)


def make_run(loop: SpeculationLoop, run: WarmUpRun) -> None:
    """The prompts with their first tokens, until all are in, then a round with drafts. Leaves nothing behind.

    Sequences share no blocks with each other, only with themselves in later runs: what is read twice comes from a cache
    of the processor's.
    """
    about = loop.description
    prompt = [1 + index % (about.vocab_size - 1) for index in range(min(run.prompt, about.max_model_len - 1))]
    passes = run.passes(about) + 1
    most = min(passes + 2 * (run.draft_length + 1) + 1, about.max_model_len - len(prompt))
    made_up = [
        Text(f"warm-up {index}", prompt, most, Sampling(), draft_length=0, cache_salt=str(index))
        for index in range(run.sequences)
    ]
    for text in made_up:
        loop.add(text)
    for _ in range(passes):
        if any(len(text.tokens) == len(prompt) for text in made_up):
            loop.step()
    for text in made_up:
        text.draft_length = run.draft_length
    if any(text.finish is None for text in made_up):
        loop.step()
    for text in made_up:
        loop.remove(text)
    loop.step()


@dataclass(slots=True)
class CostRecorder:
    """Takes measurements in the place of a ``CostTable``, and keeps the shortest of each call."""

    verify: dict[tuple[int, int], float] = field(default_factory=dict)
    """Seconds by rows and context."""
    prefill: dict[tuple[int, int, int, int], float] = field(default_factory=dict)
    """Seconds by rows of prompts, the positions that they attend to, rows beside them and context."""
    draft: dict[tuple[tuple[int, ...], int], float] = field(default_factory=dict)
    """Seconds by the sequences that each step feeds, and context."""

    def observe_verify(self, rows: int, context: int, seconds: float, *, jitters: bool = False) -> None:
        """Note a verify pass."""
        self.verify[rows, context] = min(seconds, self.verify.get((rows, context), seconds))

    def observe_prefill(self, entered: int, attended: int, rows: int, context: int, seconds: float) -> None:
        """Note a verify pass with prefill."""
        key = entered, attended, rows, context
        self.prefill[key] = min(seconds, self.prefill.get(key, seconds))

    def observe_draft(self, fed: Sequence[int], context: int, seconds: float, *, jitters: bool = False) -> None:
        """Note a draft call."""
        key = tuple(fed), context
        self.draft[key] = min(seconds, self.draft.get(key, seconds))

    @property
    def prefill_row_s(self) -> float:
        """Seconds that a row of a prompt takes at the least, the pass included; 0 where none was entered."""
        return min((seconds / entered for (entered, _, _, _), seconds in self.prefill.items()), default=0.0)

    def fit(self) -> CalibratedCosts:
        """The costs behind the measurements."""
        verify_context_s = _context_rate([(rows, 1, context, s) for (rows, context), s in self.verify.items()])
        verify: dict[int, float] = {}
        for (rows, context), seconds in self.verify.items():
            alone = max(seconds - context * verify_context_s, 0.1 * seconds)
            verify[rows] = min(alone, verify.get(rows, alone))
        even = [(fed[0], len(fed), context, s) for (fed, context), s in self.draft.items() if len(set(fed)) == 1]
        one = [(steps, context, s) for sequences, steps, context, s in even if sequences == 1]
        draft_context_s = _context_rate(even)
        call = _intercept([(steps, s - steps * context * draft_context_s) for steps, context, s in one])
        step: dict[int, tuple[int, float]] = {}
        for sequences, steps, context, seconds in even:
            alone = (seconds - call) / steps - context * draft_context_s
            if steps > step.get(sequences, (0, 0.0))[0]:  # the longest draft tells a step best
                step[sequences] = steps, max(alone, 0.1 * seconds / steps)
        found = CalibratedCosts(
            verify=tuple(sorted(verify.items())),
            draft_step=tuple((sequences, seconds) for sequences, (_, seconds) in sorted(step.items())),
            draft_call_s=call, verify_context_s=verify_context_s, draft_context_s=draft_context_s,
            prefill_context_s=verify_context_s,  # a row reads what it attends to, whatever becomes of it
        )
        return replace(found, prefill_row=self._prefill_row(CostTable(found)))

    def _prefill_row(self, known: CostTable) -> Points:
        """Seconds that a row of a prompt adds, by such rows in a pass, where all else is known."""
        each: dict[int, float] = {}
        for (entered, attended, rows, context), seconds in self.prefill.items():
            added = seconds - known.verify_seconds(rows, context) - attended * known.prefill_context_s
            alone = max(added, 0.1 * seconds) / entered
            each[entered] = min(alone, each.get(entered, alone))
        return tuple(sorted(each.items()))


def _context_rate(measured: Sequence[tuple[int, int, int, float]]) -> float:
    """Seconds per cached position and step, from (sequences or rows, steps, context, seconds) of calls.

    Of calls alike but for their context the pair decides that read most positions more, and of those about as far apart
    the one with the fewest rows: a position is read in each step, disturbances come once a call, and the rows of one
    sequence read the same positions.
    """
    most, rate = 0, 0.0
    for alike in sorted({(count, steps) for count, steps, _, _ in measured}):
        calls = sorted((context, seconds) for *other, context, seconds in measured if tuple(other) == alike)
        (near, short), (far, long) = calls[0], calls[-1]
        more = (far - near) * alike[1]
        if far >= 2 * near and more > _FURTHER * most:
            most, rate = more, max((long - short) / more, 0.0)
    return rate


def _intercept(points: Sequence[tuple[float, float]]) -> float:
    """Seconds at no step by least squares over (steps, seconds), at least 0 and less than any of the points."""
    if len({steps for steps, _ in points}) < 2:
        return 0.0
    mean_steps = sum(steps for steps, _ in points) / len(points)
    mean_seconds = sum(seconds for _, seconds in points) / len(points)
    slope = sum((steps - mean_steps) * (seconds - mean_seconds) for steps, seconds in points) / sum(
        (steps - mean_steps) ** 2 for steps, _ in points)
    return min(max(mean_seconds - slope * mean_steps, 0.0), 0.9 * min(seconds for _, seconds in points))
