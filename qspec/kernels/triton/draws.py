"""Tokens of rows, straight from the pieces of ``lm_head``'s product: drawn, and drafted ones decided on.

``qspec.sampling.draw``, ``qspec.filters`` and ``qspec.acceptance`` define what comes out; here all rows of a pass do it
at once, each in its own way (``row_draws``), and a token and a bit a row are all that the host sees.

The Gumbel-max trick needs no distribution: the largest of logit/temperature + noise is the draw, and a filter only says
who takes part. So without filters a draw is one pass over the vocabulary in blocks and one over the blocks' winners, as
for ``greedy``; filters put a search for their bound between (``filters``). Under the rejection rule every row says
whether its drafted token stands, and what is recovered if it does not; the host goes along until the first that falls.

Scores are float64: noise has a resolution that float32 lacks, and close scores must fall alike on both workers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from qspec.kernels.triton.elementwise import Pieces, read_product
from qspec.kernels.triton.filters import find_bounds, kept
from qspec.kernels.triton.noise import first_uniform, gumbel_noise
from qspec.kernels.triton.overlap import launch_options, wait_for_inputs
from qspec.kernels.triton.row_draws import DrawKind, Field
from qspec.noise import Purpose

_BLOCK = 2048
_FIELDS = {field.name: int(field) for field in Field}
_COUPLED, _DRAFT, _ACCEPT, _RESIDUAL, _BONUS = (
    tl.constexpr(int(purpose))
    for purpose in (Purpose.COUPLED, Purpose.DRAFT, Purpose.ACCEPT, Purpose.RESIDUAL, Purpose.BONUS))


@triton.jit
def _scaled_logits(logits, temperature):
    """Logits over the temperature, which is 0 for greedy rows; no negative zero, which has another key."""
    scaled = tl.math.div_rn(logits, tl.where(temperature > 0.0, temperature, 1.0) + tl.zeros_like(logits))
    return tl.where(scaled == 0.0, 0.0, scaled)


@triton.jit(do_not_specialize=["M", "stride"])
def _draw_blocks(
    pieces, scales, token_scales, draws, positions, winners, tokens, M, stride, width,
    NOISE: tl.constexpr, TEMPERATURE: tl.constexpr, SEED_LOW: tl.constexpr, SEED_HIGH: tl.constexpr,
    CHOICE: tl.constexpr, PIECES: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """The winner of each block of the vocabulary, where nothing is filtered."""
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    token = block * BLOCK + tl.arange(0, BLOCK)
    inside = token < width
    scale = tl.load(scales + token, mask=inside, other=0.0)
    wait_for_inputs(OVERLAP)
    logits = read_product(pieces, scale, token_scales, row, token, width, M, inside, PIECES, TOKENS)
    score = logits.to(tl.float64)
    if NOISE:
        mine = draws + row
        temperature = tl.load(mine + TEMPERATURE * stride).to(tl.float32, bitcast=True)
        noise = gumbel_noise(
            tl.load(mine + SEED_LOW * stride), tl.load(mine + SEED_HIGH * stride), tl.load(positions + row) + 1,
            tl.load(mine + CHOICE * stride), block * BLOCK, BLOCK)
        score = tl.where(temperature > 0.0, _scaled_logits(logits, temperature).to(tl.float64) + noise, score)
    score = tl.where(inside, score, float("-inf"))
    to = row * tl.num_programs(1) + block
    tl.store(winners + to, tl.max(score, 0))
    tl.store(tokens + to, block * BLOCK + tl.argmax(score, 0))


@triton.jit(do_not_specialize=["M", "stride"])
def _scale_blocks(
    pieces, scales, token_scales, draws, scaled, maxima, M, stride, width,
    TEMPERATURE: tl.constexpr, PIECES: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """Logits over the temperature, and the largest of each block. ``scaled`` may be the first piece."""
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    token = block * BLOCK + tl.arange(0, BLOCK)
    inside = token < width
    scale = tl.load(scales + token, mask=inside, other=0.0)
    wait_for_inputs(OVERLAP)
    logits = read_product(pieces, scale, token_scales, row, token, width, M, inside, PIECES, TOKENS)
    values = _scaled_logits(logits, tl.load(draws + row + TEMPERATURE * stride).to(tl.float32, bitcast=True))
    tl.store(scaled + row * width + token, values, mask=inside)
    tl.store(maxima + row * tl.num_programs(1) + block, tl.max(tl.where(inside, values, float("-inf")), 0))


@triton.jit(do_not_specialize=["M", "stride"])
def _draw_kept_blocks(
    scaled, draws, positions, bounds, ties, distributions, step, winners, tokens, M, stride, width,
    TEMPERATURE: tl.constexpr, MIN_P: tl.constexpr, SEED_LOW: tl.constexpr, SEED_HIGH: tl.constexpr,
    CHOICE: tl.constexpr, REJECTS: tl.constexpr, DRAFTED: tl.constexpr, DISTRIBUTION: tl.constexpr,
    DRAFTING: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """The winner of each block among what is kept: ``winners``, ``tokens`` ``[2, M, blocks]``.

    The second of each is the target's where a residual is drawn from, in case nothing is left of it. With ``DRAFTING``
    the distributions of rows under the rejection rule are left for the verifier.
    """
    wait_for_inputs(OVERLAP)
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    token = block * BLOCK + tl.arange(0, BLOCK)
    inside = token < width
    mine = draws + row
    temperature = tl.load(mine + TEMPERATURE * stride).to(tl.float32, bitcast=True)
    min_p = tl.load(mine + MIN_P * stride).to(tl.float32, bitcast=True)
    rejects = tl.load(mine + REJECTS * stride) > 0
    drafted = tl.load(mine + DRAFTED * stride)
    largest, bound = tl.load(bounds + row), tl.load(bounds + M + row)
    normaliser, last = tl.load(bounds + 2 * M.to(tl.int64) + row), tl.load(ties + row)
    s = tl.load(scaled + row * width + token, mask=inside, other=float("-inf"))
    taking_part = inside & kept(s, token, largest, bound, last, min_p)
    purpose = tl.where(rejects, tl.where(drafted >= 0, _RESIDUAL, _BONUS), _COUPLED)
    if DRAFTING:
        purpose = tl.where(rejects, _DRAFT, _COUPLED)
    noise = gumbel_noise(
        tl.load(mine + SEED_LOW * stride), tl.load(mine + SEED_HIGH * stride), tl.load(positions + row) + 1,
        tl.load(mine + CHOICE * stride) + purpose, block * BLOCK, BLOCK)
    noise = tl.where(temperature > 0.0, noise, 0.0)
    score = tl.where(taking_part, s.to(tl.float64) + noise, float("-inf"))
    to = row * tl.num_programs(1) + block
    second = M.to(tl.int64) * tl.num_programs(1) + to
    tl.store(winners + second, tl.max(score, 0))
    tl.store(tokens + second, block * BLOCK + tl.argmax(score, 0))
    if rejects:
        target = tl.where(taking_part, tl.math.div_rn(tl.exp(s - largest), normaliser + tl.zeros_like(s)), 0.0)
        place = tl.load(mine + DISTRIBUTION * stride).to(tl.int64) * width + token
        if DRAFTING:
            place += tl.load(step).to(tl.int64) * width
            tl.store(distributions + place, target, mask=inside)
        elif drafted >= 0:
            draft = tl.load(distributions + place, mask=inside, other=0.0)
            left = tl.maximum(target - draft, 0.0)
            remains = left > 0.0
            weight = tl.where(remains, left, 1.0).to(tl.float64)
            score = tl.where(remains, tl.log(weight) + noise, float("-inf"))
    tl.store(winners + to, tl.max(score, 0))
    tl.store(tokens + to, block * BLOCK + tl.argmax(score, 0))


@triton.jit(do_not_specialize=["M", "stride"])
def _verdicts_kernel(
    winners, tokens, draws, positions, scaled, bounds, ties, distributions, chosen, stands, M, stride, width, blocks,
    SECONDS: tl.constexpr, DECIDES: tl.constexpr,
    MIN_P: tl.constexpr, SEED_LOW: tl.constexpr, SEED_HIGH: tl.constexpr, CHOICE: tl.constexpr,
    REJECTS: tl.constexpr, DRAFTED: tl.constexpr, DISTRIBUTION: tl.constexpr,
    BLOCKS: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Each row's token, and with ``DECIDES`` whether its drafted one stands. ``SECONDS``: there are filtered rows."""
    wait_for_inputs(OVERLAP)
    row, block = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCKS)
    there = block < blocks
    values = tl.load(winners + row * blocks + block, mask=there, other=float("-inf"))
    token = tl.load(tokens + row * blocks + tl.argmax(values, 0))
    if SECONDS:
        other = (M.to(tl.int64) + row) * blocks
        others = tl.load(winners + other + block, mask=there, other=float("-inf"))
        if tl.max(values, 0) == float("-inf"):
            token = tl.load(tokens + other + tl.argmax(others, 0))
    tl.store(chosen + row, token)
    if DECIDES:
        mine = draws + row
        drafted = tl.load(mine + DRAFTED * stride)
        standing = (token == drafted).to(tl.int32)
        if SECONDS:
            rejects = (tl.load(mine + REJECTS * stride) > 0) & (drafted >= 0)
            token_or_none = tl.maximum(drafted, 0)
            s = tl.load(scaled + row * width + token_or_none)
            largest, bound = tl.load(bounds + row), tl.load(bounds + M + row)
            normaliser, last = tl.load(bounds + 2 * M.to(tl.int64) + row), tl.load(ties + row)
            min_p = tl.load(mine + MIN_P * stride).to(tl.float32, bitcast=True)
            target = tl.where(
                kept(s, drafted, largest, bound, last, min_p), tl.math.div_rn(tl.exp(s - largest), normaliser), 0.0)
            place = tl.load(mine + DISTRIBUTION * stride).to(tl.int64) * width + token_or_none
            draft = tl.load(distributions + place, mask=rejects, other=0.0)
            keep = tl.where(draft > 0.0, tl.math.div_rn(target, tl.where(draft > 0.0, draft, 1.0)), 1.0)
            chance = first_uniform(
                tl.load(mine + SEED_LOW * stride), tl.load(mine + SEED_HIGH * stride),
                tl.load(positions + row) + 1, tl.load(mine + CHOICE * stride) + _ACCEPT)
            accepted = (chance < tl.minimum(keep, 1.0).to(tl.float64)).to(tl.int32)
            standing = tl.where(rejects, accepted, standing)
        tl.store(stands + row, standing)


@dataclass(frozen=True, slots=True)
class DrawPlan:
    """What the rows of a pass are told."""

    draws: Tensor
    """int32 ``[fields, >= M]`` (``row_draws``)."""
    positions: Tensor
    """int32 ``[M]``: of the rows; their tokens are for the next ones."""
    distributions: Tensor | None = None
    """fp32 ``[rows of Field.DISTRIBUTION, V]``; the rejection rule needs it."""
    step: Tensor | None = None
    """int32 ``[1]`` in a draft step: behind which of a slot's distributions to write; None: rows decide."""


def draw_tokens(
    logits: Pieces, plan: DrawPlan, kind: DrawKind, scaled: Tensor, chosen: Tensor, stands: Tensor | None = None
) -> None:
    """Write the token of each row of ``lm_head``'s product ``[M, V]`` to ``chosen`` ``[M]`` (int32).

    ``stands`` ``[M]`` (int32): 1 where the row's drafted token stands; None in a draft step. ``scaled``: fp32
    ``[M, V]``, to work in; may be the product's first piece.
    """
    _, rows, width = logits.numbers.shape
    block = min(_BLOCK, triton.next_power_of_2(width))
    blocks, device = triton.cdiv(width, block), chosen.device
    filtered = kind is DrawKind.FILTERED
    shape = (2, rows, blocks) if filtered else (rows, blocks)
    winners = torch.empty(shape, dtype=torch.float64, device=device)
    tokens = torch.empty(shape, dtype=torch.int32, device=device)
    draws, stride = plan.draws, plan.draws.shape[1]
    product = {"PIECES": logits.count, "TOKENS": logits.token_scales is not None}
    blockwise = {"BLOCK": block, "num_warps": 4, **launch_options()}
    bounds = ties = maxima = draws  # some pointers where nothing is filtered
    distributions = scaled if plan.distributions is None else plan.distributions
    if filtered:
        bounds = torch.empty(3, rows, dtype=torch.float32, device=device)
        ties = torch.empty(rows, dtype=torch.int32, device=device)
        maxima = torch.empty(rows, blocks, dtype=torch.float32, device=device)
        _scale_blocks[(rows, blocks)](
            *logits.pointers(), draws, scaled, maxima, rows, stride, width, **_named("TEMPERATURE"), **product,
            **blockwise)
        find_bounds(scaled, maxima, draws, bounds, ties, _named("TEMPERATURE", "TOP_K", "TOP_P", "MIN_P"))
        _draw_kept_blocks[(rows, blocks)](
            scaled, draws, plan.positions, bounds, ties, distributions, draws if plan.step is None else plan.step,
            winners, tokens, rows, stride, width, DRAFTING=plan.step is not None,
            **_named("TEMPERATURE", "MIN_P", "SEED_LOW", "SEED_HIGH", "CHOICE", "REJECTS", "DRAFTED", "DISTRIBUTION"),
            **blockwise)
    else:
        _draw_blocks[(rows, blocks)](
            *logits.pointers(), draws, plan.positions, winners, tokens, rows, stride, width,
            NOISE=kind is not DrawKind.GREEDY, **_named("TEMPERATURE", "SEED_LOW", "SEED_HIGH", "CHOICE"), **product,
            **blockwise)
    _verdicts_kernel[(rows,)](
        winners, tokens, draws, plan.positions, scaled, bounds, ties, distributions, chosen,
        chosen if stands is None else stands, rows, stride, width, blocks, SECONDS=filtered, DECIDES=stands is not None,
        **_named("MIN_P", "SEED_LOW", "SEED_HIGH", "CHOICE", "REJECTS", "DRAFTED", "DISTRIBUTION"),
        BLOCKS=triton.next_power_of_2(blocks), num_warps=1, **launch_options())


def _named(*names: str) -> dict[str, int]:
    """Rows of the matrix of draws, by the names that kernels know them by."""
    return {name: _FIELDS[name] for name in names}
