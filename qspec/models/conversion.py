"""Converting a model's files into the directory that ``qspec.models.converted`` describes, tensor by tensor.

Memory stays at a few of the model's largest tensors (a ``.bin`` checkpoint: one shard more), because the canonical
shapes are known from the configuration and the files are written in place (``SafetensorsWriter``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from qspec.errors import ModelError
from qspec.interfaces import Progress
from qspec.models.checkpoint import TensorSource, open_checkpoint
from qspec.models.config import DecoderConfig
from qspec.models.families import FamilySpec, family_of_config
from qspec.models.gguf_file import GgufFile
from qspec.models.hf_config import decoder_config, features
from qspec.models.int8_weights import quantize_rows
from qspec.models.resolve import ModelSource, SourceKind
from qspec.models.safetensors_writer import SafetensorsWriter
from qspec.models.tensor_rules import Feature, TensorPlan, check_stored_tensors, plan
from qspec.models.tokenizer_files import write_gguf_tokenizer, write_tokenizer


def convert(
    source: ModelSource, *, weights: Path, int8: Path, tokenizer: Path, progress: Progress
) -> tuple[DecoderConfig, str]:
    """Write the canonical tensors of ``source``, their int8 form and the tokenizer directory.

    Returns the configuration and the model's fingerprint: a SHA-256 of configuration and fp32 tensors, equal for equal
    models wherever they come from.
    """
    progress("reading the model's files", None)
    if source.kind is SourceKind.GGUF:
        with closing(GgufFile(source.path)) as file:
            write_gguf_tokenizer(file, tokenizer)
            return _convert(file.spec, file.config, file, weights, int8, progress)
    record = _read_config(source.path / "config.json")
    spec = family_of_config(record)
    write_tokenizer(source, tokenizer)
    with closing(open_checkpoint(source.path)) as checkpoint:
        return _convert(spec, record, checkpoint, weights, int8, progress)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"{path} is no JSON ({error}); download the model again") from error
    if not isinstance(record, dict):
        raise ModelError(f"{path} is no JSON object; download the model again")
    return record


def _convert(
    spec: FamilySpec, record: Mapping[str, Any], source: TensorSource, weights: Path, int8: Path, progress: Progress
) -> tuple[DecoderConfig, str]:
    config, switched_on = decoder_config(spec, record), features(spec, record)
    plans = plan(spec.rules, config, switched_on)
    stored_names = _stored_names(spec, source)
    shapes = {name: source.shapes[stored] for name, stored in stored_names.items()}
    tied_copy = ("lm_head.weight",) if Feature.TIED in switched_on else ()
    check_stored_tensors(plans, shapes, (*spec.ignored_tensors, *tied_copy))

    digest = hashlib.sha256(json.dumps(config.to_json(), sort_keys=True).encode())
    linears = [entry for entry in plans if entry.quantizable]
    codes = {f"{entry.target}.codes": (torch.int8, entry.shape[::-1]) for entry in linears}
    scales = {f"{entry.target}.scales": (torch.float32, entry.shape[1:]) for entry in linears}
    announced = {entry.target: (torch.float32, entry.shape) for entry in plans}
    total, done = sum(_size(entry) for entry in plans), 0
    with SafetensorsWriter(weights, announced) as fp32_file, SafetensorsWriter(int8, {**scales, **codes}) as int8_file:
        for entry in plans:
            progress("converting the weights", done / total)
            tensor = _canonical(entry, source, stored_names)
            if entry.target == "lm_head" and tied_copy and tied_copy[0] in stored_names:
                _check_tied_copy(tensor, source.read(stored_names[tied_copy[0]]))
            fp32_file.write(entry.target, tensor)
            digest.update(entry.target.encode())
            digest.update(tensor.numpy().data)
            if entry.quantizable:
                entry_codes, entry_scales = quantize_rows(tensor.t())
                int8_file.write(f"{entry.target}.codes", entry_codes)
                int8_file.write(f"{entry.target}.scales", entry_scales)
            done += _size(entry)
    progress("converting the weights", 1.0)
    return config, digest.hexdigest()


def _canonical(entry: TensorPlan, source: TensorSource, stored_names: Mapping[str, str]) -> torch.Tensor:
    parts = []
    for part in entry.parts:
        tensor = source.read(stored_names[part.name])
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"tensor {part.name} contains NaN or infinity; download the model again")
        parts.append(tensor.t() if entry.transpose else tensor)
    return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)).contiguous()


def _check_tied_copy(lm_head: torch.Tensor, copy: torch.Tensor) -> None:
    if copy.shape != lm_head.shape[::-1] or not torch.equal(copy.t(), lm_head):
        raise ModelError(
            "config.json ties lm_head to the embedding, but the checkpoint has another lm_head.weight; "
            "set tie_word_embeddings to false in config.json"
        )


def _stored_names(spec: FamilySpec, source: TensorSource) -> dict[str, str]:
    """Full Hugging Face name to stored name: a checkpoint saved from the bare model lacks the prefix."""
    names = source.shapes.keys()
    if any(name.startswith(spec.base_prefix) for name in names):
        return {name: name for name in names}
    return {name if name.startswith("lm_head.") else spec.base_prefix + name: name for name in names}


def _size(entry: TensorPlan) -> int:
    return torch.Size(entry.shape).numel()
