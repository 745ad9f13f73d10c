"""What prompts with a common beginning cost, with and without a prefix cache: rows of prefill, which are counted.

``python -m benchmarks.prefix_cache [--model NAME] [--shared N] [--requests N]``: one request after the other, each a
system prompt of N tokens and a question of its own. Two lines of text, then one line of JSON. Counted, not timed, and
without a drafter: the figures are the same on every machine and for every method.
"""

from __future__ import annotations

import argparse
import json
from contextlib import closing
from dataclasses import asdict, dataclass

from benchmarks.environment import describe_environment
from qspec.cli import run_program
from qspec.config import StackConfig
from qspec.engine.verifier import LocalVerifier
from qspec.interfaces import Sampling, unwatched
from qspec.models.converted import prepare_tokenizer
from qspec.models.tokenizer import Tokenizer
from qspec.sequence import Sequence
from qspec.speculation import SpeculationLoop

SYSTEM = "You are the librarian of a small town. You answer in one sentence, and you never invent the title of a book. "
QUESTION = "Question {}: which book should I read next?"
NEW_TOKENS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a series of requests took."""

    prompt_tokens: int
    """Of all requests together."""
    cached_prompt_tokens: int
    prefill_rows: int
    texts: tuple[tuple[int, ...], ...]


def prompts_of(tokenizer: Tokenizer, shared: int, requests: int) -> list[list[int]]:
    """Token ids of so many prompts with ``shared`` tokens in common, and at least one of their own."""
    line = tokenizer.encode(SYSTEM)
    system = (line * (shared // len(line) + 1))[:shared]
    return [[*system, *tokenizer.encode(QUESTION.format(index))] for index in range(requests)]


def measure(config: StackConfig, prompts: list[list[int]]) -> Work:
    """Make a few tokens behind each prompt, one after the other."""
    with closing(LocalVerifier.load(config, progress=unwatched, epoch=1)) as verifier:
        loop = SpeculationLoop()
        loop.attach_verifier(verifier)
        sequences = [Sequence(str(index), prompt, NEW_TOKENS, Sampling()) for index, prompt in enumerate(prompts)]
        for sequence in sequences:
            loop.add(sequence)
            while loop.has_work:
                loop.step()
        return Work(
            prompt_tokens=sum(sequence.prompt_len for sequence in sequences),
            cached_prompt_tokens=sum(sequence.cached_prompt_tokens or 0 for sequence in sequences),
            prefill_rows=loop.prefill_rows,
            texts=tuple(tuple(sequence.generated) for sequence in sequences))


def main() -> int:
    """Measure with and without; 1 where texts differ."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prefix_cache", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=StackConfig().model, help="alias, directory, GGUF file or hub id")
    parser.add_argument("--shared", type=int, default=400, metavar="N", help="tokens in common (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=8, metavar="N", help="(default: %(default)s)")
    args = parser.parse_args()
    tokenizer = Tokenizer.load(prepare_tokenizer(args.model))
    prompts = prompts_of(tokenizer, args.shared, args.requests)
    found: dict[bool, Work] = {}
    for prefix_cache in (False, True):
        work = found[prefix_cache] = measure(StackConfig(
            model=args.model, draft_quantization="off", verify_quantization="none", max_slots=4,
            prefix_cache=prefix_cache), prompts)
        print(f"prefix cache {'on' if prefix_cache else 'off':3}  {work.prefill_rows} rows of prefill for "
              f"{work.prompt_tokens} prompt tokens, {work.cached_prompt_tokens} of them found")
    same = found[False].texts == found[True].texts
    without = {name: value for name, value in asdict(found[False]).items() if name != "texts"}
    having = {name: value for name, value in asdict(found[True]).items() if name != "texts"}
    print(json.dumps({
        "shared": args.shared, "requests": args.requests, "off": without, "on": having, "texts_are_the_same": same,
        "environment": describe_environment()}))
    return 0 if same else 1


if __name__ == "__main__":
    run_program(main)
