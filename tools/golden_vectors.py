"""Writes ``clients/golden``: messages of the public service as bytes and as JSON, which every client's tests read.

A vector is a pair of files, ``MESSAGE/NAME.bin`` and ``MESSAGE/NAME.json``. What a client has to show of each:

- read from the bytes and written again, it gives the same bytes, unknown fields included;
- read from the bytes and written as JSON, it gives the JSON file's value;
- read from the JSON and written as bytes, it gives the bytes, but for the unknown fields that the vectors called
  ``unknown_…`` end in: JSON has no place for them.

``python -m tools.golden_vectors --check`` says whether the files are what this program would write.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import json_format
from google.protobuf.message import Message

from qspec.v1 import generation_pb2 as pb
from qspec.v1 import types_pb2
from tools.generate_protos import ROOT

DIRECTORY = ROOT / "clients" / "golden"
TEXT = "Grüße, 世界 🙂\u2028\u0000 \"\\/</\u200f\t\r\n"
"""Two, three and four bytes of UTF-8, and what JSON has to escape."""
UNKNOWN = bytes.fromhex("92bb01 05 6e65776572  98bb01 ffffffffffffffffff01  a5bb01 0000803f")
"""Fields 2994 (the text "newer"), 2995 (the largest integer) and 2996 (32 bits): above every field that is known."""


@dataclass(frozen=True, slots=True)
class Vector:
    """One message, and the unknown fields behind it."""

    name: str
    message: Message
    unknown: bytes = b""

    @property
    def files(self) -> dict[Path, bytes]:
        """What its two files hold, by their path below the directory."""
        stem = Path(self.message.DESCRIPTOR.name) / self.name
        value = json_format.MessageToDict(self.message)
        return {
            stem.with_suffix(".bin"): self.message.SerializeToString(deterministic=True) + self.unknown,
            stem.with_suffix(".json"): (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode(),
        }


def vectors() -> Iterator[Vector]:
    """All vectors: each message of each public RPC, whole and at its edges."""
    yield from _requests()
    yield from _responses()
    yield from _server_info()
    yield Vector("text", pb.TokenizeRequest(text=TEXT))
    yield Vector("chat", pb.TokenizeRequest(chat=_chat()))
    yield Vector("tokens", pb.TokenizeResponse(token_ids=[0, 1, 127, 128, 2**31, 2**32 - 1]))
    yield Vector("none", pb.TokenizeResponse())


def _chat() -> pb.ChatPrompt:
    return pb.ChatPrompt(messages=[
        pb.ChatMessage(role=pb.CHAT_ROLE_SYSTEM, content="Be brief."),
        pb.ChatMessage(role=pb.CHAT_ROLE_USER, content=TEXT),
        pb.ChatMessage(role=pb.CHAT_ROLE_ASSISTANT),
    ])


def _requests() -> Iterator[Vector]:
    """Requests: optional fields at 0 are there, and differ from those that are not."""
    yield Vector("empty", pb.GenerateRequest())
    yield Vector("empty_text", pb.GenerateRequest(text=""))
    yield Vector("empty_chat", pb.GenerateRequest(chat=pb.ChatPrompt()))
    yield Vector("optional_at_zero", pb.GenerateRequest(
        text="x", max_tokens=0, temperature=0, top_k=0, top_p=0, seed=0, draft_length=0, min_p=0, typical_p=0,
        repetition_penalty=0, presence_penalty=0, frequency_penalty=0, min_tokens=0, logprobs=0, prompt_logprobs=0, n=0,
        json_schema="", request_id="", priority=0, timeout_s=0))
    yield Vector("everything", pb.GenerateRequest(
        chat=_chat(), max_tokens=2**32 - 1, temperature=0.1, top_k=50, top_p=1e-300, seed=2**64 - 1,
        stop=["", TEXT, "\n\n"], draft_length=5, min_p=5e-324, typical_p=1 / 3,
        repetition_penalty=1.7976931348623157e308, presence_penalty=-2, frequency_penalty=0.5,
        logit_bias=[pb.LogitBias(), pb.LogitBias(token_id=2**32 - 1, bias=-100)], min_tokens=3,
        stop_token_ids=[0, 2**32 - 1], ignore_eos=True, logprobs=20, prompt_logprobs=1, n=64, echo=True,
        regex="[äöü]+", request_id="r-1", priority=-100, timeout_s=86400))
    yield Vector("seed_beyond_doubles", pb.GenerateRequest(tokens=pb.TokenPrompt(token_ids=[0, 300]), seed=2**53 + 1))
    yield Vector("unknown_fields", pb.GenerateRequest(text="x", seed=0), UNKNOWN)


def _responses() -> Iterator[Vector]:
    """Pieces of text."""
    yield Vector("empty", pb.GenerateResponse())
    yield Vector("first_piece", pb.GenerateResponse(
        text=TEXT, token_ids=[7, 0], choice=3, prompt_token_ids=[1, 2, 3], request_id="r-1",
        logprobs=[
            types_pb2.TokenLogprobs(logprob=-0.5, top_token_ids=[7, 9], top_logprobs=[-0.5, float("-inf")]),
            types_pb2.TokenLogprobs(),
        ],
        prompt_logprobs=[types_pb2.TokenLogprobs(logprob=-12.25)]))
    yield Vector("last_piece", pb.GenerateResponse(
        finish_reason=pb.FINISH_REASON_STOP_TOKEN, matched_stop="", matched_stop_token=0,
        usage=pb.Usage(prompt_tokens=1, completion_tokens=2, time_to_first_token_s=0.1, total_s=1e-9,
                       tokens_per_second=123456.789),
        speculation=pb.SpeculationStats(
            rounds=1, drafted=2, accepted=3, accepted_per_position=[0, 1], drafted_per_position=[2, 0],
            rounds_per_draft_length=[0, 0, 300], draft_s=0.25, verify_s=0.5, rpc_s=0.125, round_total_s=1,
            rounds_without_drafter=4, recomputations=5)))
    newer = pb.GenerateResponse(text="x", usage=pb.Usage())
    newer.ParseFromString(newer.SerializeToString() + bytes.fromhex("1863"))  # finish_reason: 99
    yield Vector("unknown_reason_and_fields", newer, UNKNOWN)


def _server_info() -> Iterator[Vector]:
    """What runs, with 64-bit numbers that no double holds."""
    yield Vector("empty", pb.GetServerInfoRequest())
    yield Vector("unknown_fields", pb.GetServerInfoRequest(), UNKNOWN)
    yield Vector("everything", pb.GetServerInfoResponse(
        version="0.1.0", state=pb.SERVER_STATE_SERVING, model="smollm2", draft_method="w8a8", verify_method="none:fp32",
        max_model_len=2048, max_slots=8, max_draft_length=16, running=1, waiting=2, drafter_restarts=3,
        verifier_restarts=4,
        memory=[
            pb.MemoryLine(owner="arena", name="weights", bytes=2**64 - 1, shared=True, mapped_file=True),
            pb.MemoryLine(owner="drafter", name="größer", bytes=2**53 + 1),
        ],
        verify_kernel="avx512", draft_kernel="avx512-vnni", row_invariant=True, verify_s=[0.5, 0, 1e-3],
        draft_step_s=1e-3, auto_reason=TEXT, max_waiting=256, max_buffered_tokens=1024, num_blocks=64, free_blocks=63,
        block_size=16, vocab_size=49152, prefix_cache=True, max_batch_rows=512, preemptions=5,
        pairs=[
            pb.PairInfo(
                name="1", state=pb.PAIR_STATE_SERVING, running=1, waiting=2, max_slots=8, num_blocks=64, free_blocks=63,
                draft_method="w8a8", verifier_restarts=4, drafter_restarts=3),
            pb.PairInfo(name="zwei", state=pb.PAIR_STATE_FAILED, detail=TEXT),
        ],
        request_limits=pb.RequestLimits(
            max_texts=64, max_stop_strings=16, max_stop_length=256, max_stop_tokens=128, max_logit_biases=1024,
            max_logprobs=20, max_constraint_bytes=65536, max_request_bytes=2**32 - 1)))
    yield Vector("loading", pb.GetServerInfoResponse(state=pb.SERVER_STATE_LOADING))


def find_drift(directory: Path) -> list[str]:
    """One line for each file below ``directory`` that is missing, superfluous or different."""
    expected = {path: content for vector in vectors() for path, content in vector.files.items()}
    present = {path.relative_to(directory): path.read_bytes() for path in directory.glob("*/*")}
    return [
        f"{path}: {'missing' if path not in present else 'no vector' if path not in expected else 'differs'}"
        for path in sorted(expected.keys() | present.keys()) if expected.get(path) != present.get(path)
    ]


def write(directory: Path) -> None:
    """Make ``directory`` hold the vectors and nothing else below its folders."""
    for stale in directory.glob("*/*"):
        stale.unlink()
    for vector in vectors():
        for path, content in vector.files.items():
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            (directory / path).write_bytes(content)


def main() -> int:
    """Write the vectors, or compare them; the exit status is 1 when they differ."""
    parser = argparse.ArgumentParser(prog="python -m tools.golden_vectors", description="Writes clients/golden.")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    if not parser.parse_args().check:
        write(DIRECTORY)
    elif drift := find_drift(DIRECTORY):
        print(*drift, "Run 'make client-protos' and check the result in.", sep="\n", file=sys.stderr)
        return 1
    else:
        print("Golden vectors agree with the proto files.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
