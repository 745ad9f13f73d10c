"""``python -m qspec quantize``: a model directory with calibrated codes beside the weights that they stand for.

The result is a converted model (``qspec.models.converted``) whose ``stored.safetensors`` holds the codes: under the
format's method they are used as they are, as a drafter's weights or a verifier's, and ``none`` is still the original
(after AWQ: the original with scaled weights, which computes the same but for rounding in fp32).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from qspec.calibration.assembly import FP32, PART, assemble
from qspec.calibration.config import Algorithm, CalibrationConfig
from qspec.calibration.layer_walk import Half, LayerWalk
from qspec.calibration.partial_result import PartialResult, opened, require_absent
from qspec.calibration.rounding import quantise_half, scale_half
from qspec.engine.linears import PlainLinear
from qspec.engine.torch_forward import TorchForward
from qspec.errors import InvalidInput
from qspec.evaluation.answers import greedy_answers
from qspec.evaluation.token_sequences import token_sequences
from qspec.interfaces import Progress
from qspec.models.converted import ConvertedModel, prepare
from qspec.models.decoder import Decoder, linear_names
from qspec.models.mapped_tensors import MappedTensors
from qspec.models.packed_weight import to_parts
from qspec.models.tokenizer import Tokenizer
from qspec.quant.codecs import CODECS
from qspec.quant.groups import require_groups
from qspec.quant.integer_grid import IntegerGrid, int4_grid
from qspec.quant.methods import METHODS, Backend, check_verify_method, choose_verify

_CALIBRATION_VERSION = 1
"""Raised whenever the algorithms yield other codes, so that partial results of older ones are not continued."""
_ANSWERS_SHARE = 0.4
"""Of the work, for the progress that is shown: what the model's answers take."""


@torch.inference_mode()
def quantise_model(config: CalibrationConfig, progress: Progress) -> ConvertedModel:
    """Make ``config.output``; an interrupted call that is made again goes on where it was.

    ``InvalidInput`` naming the field that cannot be used; ``ModelError`` when the model cannot be read.
    """
    weights, grid = _grid(config.method)
    if config.answer_tokens < 0 or config.longest < 2:
        raise InvalidInput.field("longest", "must be at least 2, and answer_tokens at least 0")
    require_absent(config.output)  # before a conversion that takes long
    model = prepare(config.model, progress=progress)
    tokenizer = Tokenizer.load(model.tokenizer_directory)
    longest = min(config.longest, model.config.max_position)
    texts = token_sequences(config.calibration, tokenizer, longest, "calibration")
    with model.open_weights() as tensors:
        for name in linear_names(model.config):
            require_groups(tensors.shape(name)[0], grid.group_size, name)
        settings: dict[str, str | int] = {
            "version": _CALIBRATION_VERSION, "model": model.fingerprint, "weights": weights,
            "algorithm": config.algorithm.value, "answers": config.answer_tokens,
            "texts": hashlib.sha256(repr(texts).encode()).hexdigest(),
        }
        with opened(config.output, settings) as partial:
            if partial.steps:
                progress(f"going on with what an earlier call did ({partial.steps} steps)", None)
            texts = _with_answers(config, model, tensors, tokenizer, texts, partial, progress)
            steps = _quantise_steps(config, model, tensors, texts, weights, grid, partial, progress)
            progress("writing the model", None)
            assemble(model, tensors, weights, steps, partial, origin=config.algorithm.value)
            partial.publish(config.output)
    return prepare(str(config.output), progress=progress)


def _grid(method: str) -> tuple[str, IntegerGrid]:
    """The weight format of ``method``, and its grid."""
    check_verify_method(method, Backend.CPU)
    weights = choose_verify(method, Backend.CPU).variant.weights
    grid = int4_grid(weights)
    if grid is None:
        usable = [f"int4:{variant.name}" for variant in METHODS["int4"].variants if int4_grid(variant.weights)]
        raise InvalidInput.field(
            "method", f"{method} has no 4-bit integers in groups to calibrate; choose one of: {', '.join(usable)}"
        )
    return weights, grid


def _with_answers(
    config: CalibrationConfig, model: ConvertedModel, tensors: MappedTensors, tokenizer: Tokenizer,
    texts: list[tuple[int, ...]], partial: PartialResult, progress: Progress,
) -> list[tuple[int, ...]]:
    """The texts, prompts with the model's own answers behind them."""
    most = min(config.answer_tokens, model.config.max_position // 2)
    if config.calibration.suffix != ".jsonl" or not most:
        return texts
    prompts = [text[: model.config.max_position - most] for text in texts]
    saved = partial.load("answers") or {}
    answers = [tuple(saved[str(index)].tolist()) for index in range(len(saved))]

    def keep(new: list[tuple[int, ...]]) -> None:
        partial.save("answers", {str(index): torch.tensor(answer) for index, answer in enumerate(answers + new)})

    linears = {name: PlainLinear(tensors[name], tensors.get(f"{name}.bias")) for name in linear_names(model.config)}
    decoder = Decoder(model.config, tensors, linears, max(map(len, prompts)) + most)

    def show(text: str, share: float | None) -> None:
        progress(text, _ANSWERS_SHARE * (len(answers) + (share or 0.0) * (len(prompts) - len(answers))) / len(prompts))

    answers = answers + greedy_answers(
        TorchForward(decoder), prompts[len(answers) :], most, tokenizer.eos_token_ids, show, keep
    )
    return [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]


def _quantise_steps(
    config: CalibrationConfig, model: ConvertedModel, tensors: MappedTensors, texts: list[tuple[int, ...]],
    weights: str, grid: IntegerGrid, partial: PartialResult, progress: Progress,
) -> list[str]:
    """Do what is not done yet; the names of the steps."""
    walk = LayerWalk(model.config, tensors, texts)
    halves = 2 * model.config.num_layers + 1
    steps = []
    for index, half in enumerate(walk.halves()):
        done_share = _ANSWERS_SHARE + (1.0 - _ANSWERS_SHARE) * index / halves
        progress(f"{config.algorithm.value}: quantising {weights}", done_share)
        steps.append(f"half-{index:04}")
        done = partial.load(steps[-1])
        if done is None:
            partial.save(steps[-1], _quantise(config, model, walk, half, weights, grid))
        else:
            _restore(walk, half, done, weights)
        half.advance()
        for name in half.names:  # passed: what replaced it may be forgotten
            walk.linears[name].weight = tensors[name]
    return steps


def _quantise(
    config: CalibrationConfig, model: ConvertedModel, walk: LayerWalk, half: Half, weights: str, grid: IntegerGrid
) -> dict[str, Tensor]:
    scaled = scale_half(walk, half, model.config, grid) if config.algorithm is Algorithm.AWQ else {}
    step = {FP32 + name: tensor.clone() for name, tensor in scaled.items()}
    for name, packed in quantise_half(config.algorithm, walk, half, grid).items():
        step |= {f"{PART}{name}.{part}": tensor for part, tensor in to_parts([packed], weights).items()}
    return step


def _restore(walk: LayerWalk, half: Half, step: Mapping[str, Tensor], weights: str) -> None:
    """Put the results of a finished step in their place."""
    for name, tensor in step.items():
        if (changed := name.removeprefix(FP32)) in walk.small:
            walk.small[changed].copy_(tensor)
    for name in half.names:
        parts = {part: step[f"{PART}{name}.{part}"] for part in CODECS[weights].part_names}
        walk.linears[name].weight = CODECS[weights].decode(parts).t()
