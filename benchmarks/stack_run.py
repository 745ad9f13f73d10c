"""Runs the prompts through whole stacks, as the client starts them, over gRPC.

Two stacks stand side by side: the one under test, whose requests choose their draft length, and one that was started
without a drafter, in case a drafter's mere presence slows plain decoding down. One request runs at a time, and for each
prompt all configurations run one after the other, so that slow drift of the machine hits all of them alike. The order
is fixed, and moves on by one from prompt to prompt, so that none of them is always first.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from benchmarks.memory import ProcessMemory, descendants, read_memory
from benchmarks.samples import Sample, Speculation
from benchmarks.stream_run import StreamRun, run_streams
from coordinator.client.generate import wait_until_serving
from coordinator.private_stack import PrivateStack
from qspec.client import AsyncClient, Message
from qspec.client.completion import CompletionBuilder
from qspec.client.retry import NEVER
from qspec.config import StackConfig
from qspec.errors import QspecError
from qspec.quant.methods import NO_DRAFTER
from qspec.v1 import generation_pb2 as pb

WARM_UP_TOKENS = 16
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """One way to decode."""

    name: str
    draft_length: int | None
    """Tokens per round; None leaves it to the server."""
    drafter: bool = True
    """Whether its stack has a drafter."""


PLAIN = Configuration(name="plain", draft_length=0)
PLAIN_ALONE = Configuration(name="plain, no drafter", draft_length=0, drafter=False)
AUTO = Configuration(name="auto", draft_length=None)
CONFIGURATIONS = (PLAIN, PLAIN_ALONE, *(Configuration(name=f"k = {k}", draft_length=k) for k in (1, 2, 3, 4)), AUTO)
_NAMED = {configuration.name: configuration for configuration in CONFIGURATIONS}


@dataclass(frozen=True, slots=True, kw_only=True)
class StackRun:
    """What the stacks yielded."""

    prompts: tuple[tuple[int, ...], ...]
    """Tokens of each prompt as it was fed, chat template included."""
    samples: dict[str, tuple[Sample, ...]]
    """By the configuration's name, one for each prompt."""
    info: pb.GetServerInfoResponse
    """What the stack under test says of itself after its last text."""
    streams: tuple[StreamRun, ...]
    """Several texts at once."""
    memory: tuple[ProcessMemory, ...]
    """Every process of the stack under test after its last text, while no other stack is up."""


async def run_stacks(
    config: StackConfig, prompts: Iterable[str], *, prompt_tokens: int, max_tokens: int, streams: Sequence[int],
    tell: Tell,
) -> StackRun:
    """Generate for every prompt, cut to ``prompt_tokens`` tokens, in every configuration; then ``streams`` at once.

    Raises ``QspecError`` when a stack fails, and when a draft was missing because the drafter was away.
    """
    async with running_stack(config, tell) as tested:
        async with running_stack(replace(config, draft_quantization=NO_DRAFTER), tell) as alone:
            cut = tuple([await stack_tokens(tested, prompt, prompt_tokens) for prompt in prompts])
            stacks = {configuration: tested if configuration.drafter else alone for configuration in CONFIGURATIONS}
            for configuration, client in stacks.items():
                tell(f"warm-up: {configuration.name}")
                await stack_text(client, configuration, cut[0], min(WARM_UP_TOKENS, max_tokens))
            samples: dict[str, list[Sample]] = {configuration.name: [] for configuration in CONFIGURATIONS}
            for index, prompt in enumerate(cut):
                shift = index % len(CONFIGURATIONS)
                for configuration in CONFIGURATIONS[shift:] + CONFIGURATIONS[:shift]:
                    tell(f"prompt {index + 1} of {len(cut)}: {configuration.name}")
                    samples[configuration.name].append(
                        await stack_text(stacks[configuration], configuration, prompt, max_tokens))
        together = []
        for count in streams:
            tell(f"{count} streams at once")
            together.append(await run_streams(
                lambda name, prompt, most: stack_text(tested, _NAMED[name], prompt, most),
                [PLAIN.name, AUTO.name], cut, count, max_tokens))
        info = await tested.server_info()
        memory = tuple(read_memory(pid) for pid in descendants(os.getpid()))
    return StackRun(
        prompts=cut, samples={name: tuple(found) for name, found in samples.items()}, info=info,
        streams=tuple(together), memory=memory)


@contextlib.asynccontextmanager
async def stack_address(config: StackConfig, tell: Tell) -> AsyncIterator[str]:
    """Where a private stack serves."""
    tell(f"starting a stack, drafter: {config.draft_quantization}")

    def ignore(stage: str, fraction: float) -> None:
        """The start's details are not of interest here."""

    async with PrivateStack(config, ignore) as address:
        async with AsyncClient(address, retry=NEVER) as client:
            await wait_until_serving(client, address, ignore)
        yield address


@contextlib.asynccontextmanager
async def running_stack(config: StackConfig, tell: Tell) -> AsyncIterator[AsyncClient]:
    """A client of a private stack that serves."""
    async with stack_address(config, tell) as address, AsyncClient(address, retry=NEVER) as client:
        yield client


async def stack_tokens(client: AsyncClient, prompt: str, most: int) -> tuple[int, ...]:
    """Tokens of a prompt in the chat template; a longer one loses the end of what the user said, never the template."""
    tokens = await _chat_tokens(client, prompt)
    if len(tokens) <= most:
        return tokens
    closing = common_end(await _chat_tokens(client, "a"), await _chat_tokens(client, "b"))
    if len(closing) >= most:
        raise QspecError(f"--prompt-tokens: must be more than the chat template's {len(closing)}, got {most}")
    return tokens[: most - len(closing)] + closing


def common_end(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    """The longest end that both have."""
    length = 0
    for ours, theirs in zip(reversed(left), reversed(right), strict=False):
        if ours != theirs:
            break
        length += 1
    return left[len(left) - length :]


async def _chat_tokens(client: AsyncClient, prompt: str) -> tuple[int, ...]:
    return await client.tokenize([Message("user", prompt)])


async def stack_text(
    client: AsyncClient, configuration: Configuration, prompt: tuple[int, ...], max_tokens: int, *,
    ignore_eos: bool = False,
) -> Sample:
    """One greedy text; with ``ignore_eos`` it has ``max_tokens`` tokens whatever they are."""
    request = pb.GenerateRequest(
        tokens=pb.TokenPrompt(token_ids=prompt), max_tokens=max_tokens, temperature=0.0,
        draft_length=configuration.draft_length, ignore_eos=ignore_eos)
    builder, arrivals = CompletionBuilder(1), []
    started = time.perf_counter()
    async with contextlib.aclosing(client.generate(request)) as deltas:
        async for delta in deltas:
            builder.add(delta)
            if delta.token_ids:
                arrivals.append((time.perf_counter(), len(delta.token_ids)))
    wall_s = time.perf_counter() - started
    (completion,) = builder.build()
    usage, stats = completion.finish.usage, completion.finish.speculation
    if stats.rounds_without_drafter or stats.recomputations:
        raise QspecError(f"{configuration.name}: a worker was lost meanwhile, so this run says nothing")
    return Sample(
        prompt_tokens=usage.prompt_tokens,
        token_ids=completion.token_ids,
        first_token_s=usage.time_to_first_token_s,
        total_s=usage.total_s,
        wall_s=wall_s,
        speculation=Speculation(
            rounds=stats.rounds,
            drafted=stats.drafted,
            accepted=stats.accepted,
            accepted_per_position=tuple(stats.accepted_per_position),
            drafted_per_position=tuple(stats.drafted_per_position),
            rounds_per_draft_length=tuple(stats.rounds_per_draft_length),
            draft_s=stats.draft_s,
            verify_s=stats.verify_s,
            rpc_s=stats.rpc_s,
            round_s=stats.round_s,
        ),
        arrivals=tuple(arrivals),
    )
