"""A GGUF model's weights encoded anew, as llama.cpp would be given them: the file for the comparison.

All metadata, the tokenizer's among them, are copied; every tensor is dequantised and encoded again by the ``gguf``
package. Tensors of one dimension (norms, biases) are F32, as in the files of llama.cpp's own converter. A row that
is no multiple of the encoding's block becomes F16.

The files lie in the cache. Their names end in a key over the source (path, size, time of change) and
``ENCODER_VERSION``; each is written beside its place and renamed, under a file lock. Tensors pass one at a time, so the
largest one, in fp32, is what it costs in memory.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qspec.config import cache_directory
from qspec.errors import InvalidInput, ModelError
from qspec.models.cache_entry import locked, unwritable
from qspec.models.resolve import ModelSource, SourceKind

if TYPE_CHECKING:
    import gguf

ENCODER_VERSION = 1
"""Raised whenever an encoding yields other files, so that cached ones are made anew."""

ENCODINGS = ("F16", "Q8_0")
"""Names of ``gguf.GGMLQuantizationType`` that can be asked for."""

_FILE_TYPE, _QUANTIZATION_VERSION = "general.file_type", "general.quantization_version"
_WRITTEN_ANEW = (_FILE_TYPE, _QUANTIZATION_VERSION, "general.architecture")


def check_encodable(source: ModelSource) -> None:
    """``InvalidInput`` unless ``source`` is a GGUF file."""
    if source.kind is not SourceKind.GGUF:
        raise InvalidInput.field("--model", (
            f"{source.name} is no GGUF file, so there is nothing that llama.cpp could read; give its GGUF file"))


def encoded_gguf(source: ModelSource, encoding: str) -> Path:
    """The cached GGUF file of ``source`` with its weights in ``encoding``, written now when there is none.

    Raises ``ModelError`` when a weight does not fit into F16 or the cache cannot be written.
    """
    check_encodable(source)
    path = _place(source.path, encoding)
    with locked(path, lambda _text, _share: None, work="encodes the model for llama.cpp"):
        if path.is_file():
            return path
        partial = path.with_name(f".{path.name}.partial")
        try:
            _write(source.path, partial, encoding)
            partial.replace(path)
        except OSError as error:
            raise unwritable(error) from error
        finally:
            partial.unlink(missing_ok=True)
    return path


def _place(source: Path, encoding: str) -> Path:
    status = source.stat()
    stamp = json.dumps([ENCODER_VERSION, str(source), status.st_size, status.st_mtime_ns])
    key = hashlib.sha256(stamp.encode()).hexdigest()[:16]
    return cache_directory() / "llama_cpp" / f"{source.stem}-{key}-{encoding}.gguf"


def _write(source: Path, path: Path, encoding: str) -> None:
    import gguf
    import numpy as np

    reader = gguf.GGUFReader(source)
    kinds = {tensor.name: _kind(tensor, gguf.GGMLQuantizationType[encoding]) for tensor in reader.tensors}
    writer = gguf.GGUFWriter(path, str(reader.fields["general.architecture"].contents()))
    try:
        writer.data_alignment = reader.alignment
        _copy_metadata(reader, writer)
        writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{encoding}"])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        for tensor in reader.tensors:
            shape, kind = tensor.shape.tolist()[::-1], kinds[tensor.name]
            block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
            size = int(tensor.n_elements) // block * block_bytes
            writer.add_tensor_info(tensor.name, shape, np.dtype(np.float32), size, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in reader.tensors:
            writer.write_tensor_data(_encode(tensor, kinds[tensor.name]))
    finally:
        writer.close()


def _copy_metadata(reader: gguf.GGUFReader, writer: gguf.GGUFWriter) -> None:
    """Every key but those that the writer states itself (``GGUF.*`` are the header's, not keys)."""
    import gguf

    for name, field in reader.fields.items():
        if name in _WRITTEN_ANEW or name.startswith("GGUF."):
            continue
        items = field.types[-1] if field.types[0] is gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=items)


def _kind(tensor: gguf.ReaderTensor, wanted: gguf.GGMLQuantizationType) -> gguf.GGMLQuantizationType:
    import gguf

    if len(tensor.shape) == 1:
        return gguf.GGMLQuantizationType.F32
    whole_blocks = int(tensor.shape[0]) % gguf.GGML_QUANT_SIZES[wanted][0] == 0  # ggml's first dimension is a row's
    return wanted if whole_blocks else gguf.GGMLQuantizationType.F16


def _encode(tensor: gguf.ReaderTensor, kind: gguf.GGMLQuantizationType) -> Any:
    """The tensor's values in ``kind``: an array ``[…, rows, row]``, of bytes for a type of blocks."""
    import gguf
    import numpy as np

    values = gguf.dequantize(tensor.data, tensor.tensor_type)
    if kind is not gguf.GGMLQuantizationType.F32 and np.abs(values).max(initial=0) > np.finfo(np.float16).max:
        raise ModelError(f"{tensor.name} has weights beyond the range of F16, so llama.cpp cannot be compared in it")
    return gguf.quantize(np.ascontiguousarray(values, dtype=np.float32), kind)
