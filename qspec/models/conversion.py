"""Converting a model's files into the directory that ``qspec.models.converted`` describes, tensor by tensor.

Memory stays at a few of the model's largest tensors (a ``.bin`` checkpoint: one shard more), because the canonical
shapes are known from the configuration and the files are written in place (``SafetensorsWriter``).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
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
from qspec.models.packed_checkpoint import PackedCheckpoint
from qspec.models.packed_weight import format_of, to_parts
from qspec.models.quantization_config import quantization_config
from qspec.models.resolve import ModelSource, SourceKind
from qspec.models.safetensors_writer import SafetensorsWriter
from qspec.models.tensor_rules import Feature, TensorPlan, check_stored_tensors, plan
from qspec.models.tokenizer_files import write_gguf_tokenizer, write_tokenizer
from qspec.quant.codecs import CODECS

_INT8_ROWS, _LARGEST_CODE = "int8-row", 127
"""The format of a converted model's int8 file, and what its kernel is made for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What a conversion made, beside the files."""

    config: DecoderConfig
    fingerprint: str
    """A SHA-256 of configuration, fp32 tensors and stored codes, equal for equal models wherever they come from."""
    stored: Mapping[str, str]
    """Format of each linear weight whose codes were taken over, by canonical name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Files:
    """Where a conversion writes tensors."""

    weights: Path
    int8: Path
    stored: Path


def convert(
    source: ModelSource, *, weights: Path, int8: Path, stored: Path, tokenizer: Path, progress: Progress
) -> Conversion:
    """Write the canonical tensors of ``source``, their int8 form, codes that it came with, and the tokenizer directory.

    ``stored`` is written only when there are such codes.
    """
    files = _Files(weights=weights, int8=int8, stored=stored)
    progress("reading the model's files", None)
    if source.kind is SourceKind.GGUF:
        with closing(GgufFile(source.path)) as file:
            write_gguf_tokenizer(file, tokenizer)
            return _convert(file.spec, file.config, file, files, progress)
    record = _read_config(source.path / "config.json")
    spec = family_of_config(record)
    write_tokenizer(source, tokenizer)
    packed = quantization_config(record)
    with closing(open_checkpoint(source.path)) as checkpoint:
        tensors = checkpoint if packed is None else PackedCheckpoint(checkpoint, packed, spec)
        return _convert(spec, record, tensors, files, progress)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"{path} is no JSON ({error}); download the model again") from error
    if not isinstance(record, dict):
        raise ModelError(f"{path} is no JSON object; download the model again")
    return record


def _convert(
    spec: FamilySpec, record: Mapping[str, Any], source: TensorSource, files: _Files, progress: Progress
) -> Conversion:
    config, switched_on = decoder_config(spec, record), features(spec, record)
    plans = plan(spec.rules, config, switched_on)
    stored_names = _stored_names(spec, source)
    shapes = {name: source.shapes[stored] for name, stored in stored_names.items()}
    tied_copy = ("lm_head.weight",) if Feature.TIED in switched_on else ()
    check_stored_tensors(plans, shapes, (*spec.ignored_tensors, *source.ignored(), *tied_copy))

    stored = _stored_formats(plans, source, stored_names, progress)
    digest = hashlib.sha256(json.dumps(config.to_json(), sort_keys=True).encode())
    linears = [entry for entry in plans if entry.quantizable]
    codes = {f"{entry.target}.codes": (torch.int8, entry.shape[::-1]) for entry in linears}
    scales = {f"{entry.target}.scales": (torch.float32, entry.shape[1:]) for entry in linears}
    announced = {entry.target: (torch.float32, entry.shape) for entry in plans}
    total, done = sum(_size(entry) for entry in plans), 0
    with (
        SafetensorsWriter(files.weights, announced) as fp32_file,
        SafetensorsWriter(files.int8, {**scales, **codes}) as int8_file,
        _stored_writer(files.stored, plans, stored) as stored_file,
    ):
        for entry in plans:
            progress("converting the weights", done / total)
            tensor = _canonical(entry, source, stored_names)
            if entry.target == "lm_head" and tied_copy and tied_copy[0] in stored_names:
                _check_tied_copy(tensor, source.read(stored_names[tied_copy[0]]))
            fp32_file.write(entry.target, tensor)
            digest.update(entry.target.encode())
            digest.update(tensor.numpy().data)
            parts: Mapping[str, torch.Tensor] = {}
            if (weights_format := stored.get(entry.target)) is not None and stored_file is not None:
                parts = to_parts([source.read_packed(stored_names[part.name]) for part in entry.parts], weights_format)
                digest.update(weights_format.encode())
                for part, values in parts.items():
                    stored_file.write(f"{entry.target}.{part}", values)
                    digest.update(values.contiguous().numpy().data)
            if entry.quantizable:
                entry_codes, entry_scales = _int8_rows(tensor, parts if weights_format == _INT8_ROWS else {})
                int8_file.write(f"{entry.target}.codes", entry_codes)
                int8_file.write(f"{entry.target}.scales", entry_scales)
            done += _size(entry)
    progress("converting the weights", 1.0)
    return Conversion(config=config, fingerprint=digest.hexdigest(), stored=stored)


def _stored_formats(
    plans: Sequence[TensorPlan], source: TensorSource, stored_names: Mapping[str, str], progress: Progress
) -> dict[str, str]:
    """The format of each linear weight whose codes can be taken over; tells of those that must be dequantised."""
    formats: dict[str, str] = {}
    dequantised: Counter[str] = Counter()
    linears = [entry for entry in plans if entry.quantizable]
    for entry in linears:
        packings = [source.packing(stored_names[part.name]) for part in entry.parts]
        inputs = entry.shape[0]
        if (found := format_of(packings, inputs)) is not None:
            formats[entry.target] = found
        elif packed := dict.fromkeys(packing.description for packing in packings if packing is not None):
            dequantised[" and ".join(packed)] += 1
    for description, count in dequantised.items():
        progress(f"{count} of {len(linears)} layers are dequantised: no format here holds {description}", None)
    return formats


def _stored_writer(
    path: Path, plans: Sequence[TensorPlan], stored: Mapping[str, str]
) -> SafetensorsWriter | nullcontext[None]:
    if not stored:
        return nullcontext()
    announced = {}
    for entry in plans:
        if entry.target in stored:
            inputs, outputs = entry.shape
            for part, described in CODECS[stored[entry.target]].shapes(outputs, inputs, entry.target).items():
                announced[f"{entry.target}.{part}"] = described
    return SafetensorsWriter(path, announced)


def _int8_rows(tensor: torch.Tensor, stored: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes ``[out, in]`` and scales ``[out]`` of a canonical tensor: those that it came with, if none is -128."""
    if stored and int(stored["codes"].min()) >= -_LARGEST_CODE:
        return stored["codes"], stored["scales"][:, 0]
    return quantize_rows(tensor.t())


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
