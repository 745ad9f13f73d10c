"""What a section of the benchmark found, and the stack that it was found with."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from benchmarks.report import Verdict
from benchmarks.stack_run import Tell, stack_address
from qspec.client import AsyncClient
from qspec.client.retry import NEVER
from qspec.config import StackConfig
from qspec.rpc.channel import channel_options
from qspec.v1 import generation_pb2 as pb

USED_UP = "the time is used up; run it again with the same --log to go on"


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """What there is to report."""

    figures: Any
    """JSON-able."""
    verdicts: Sequence[Verdict]
    text: str
    """For people."""
    differing: int = 0
    """Requests whose text depends on the configuration."""


@contextlib.asynccontextmanager
async def open_stack(config: StackConfig, tell: Tell) -> AsyncIterator[tuple[AsyncClient, grpc.aio.Channel]]:
    """A private stack that serves: a client that asks it about itself, and a channel that is loaded."""
    async with (
        stack_address(config, tell) as address,
        AsyncClient(address, retry=NEVER) as client,
        grpc.aio.insecure_channel(address, options=channel_options(address)) as channel,
    ):
        yield client, channel


def log_path(args: argparse.Namespace, section: str) -> Path | None:
    """Where a section keeps what it measured: the load curve in ``--log``, others beside it under their names."""
    path: Path | None = args.log
    if path is None or section == "load":
        return path
    return path.with_name(f"{path.stem}-{section}{path.suffix}")


def stack_settings(args: argparse.Namespace, info: pb.GetServerInfoResponse) -> dict[str, Any]:
    """What blocks have to have in common to be compared, whatever the section."""
    return {
        "model": model_name(args.model), "verify_method": info.verify_method, "draft_method": info.draft_method,
        "threads": args.threads, "device": args.device, "slots": info.max_slots, "prompts": args.prompts.name,
    }


def model_name(model: str) -> str:
    """A model in a report: of a path the last part, the rest is nobody's business."""
    return Path(model).name if Path(model).exists() else model
