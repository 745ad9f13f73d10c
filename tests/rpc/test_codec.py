"""Every message survives the wire; what the types do not promise does not get through."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from qspec.errors import ContractViolation
from qspec.interfaces import Sampling, Verification, VerifyBatch
from qspec.rpc import codec, drafter_codec, sampling_codec, verifier_codec
from qspec.rpc.time_left import after_waiting
from qspec.v1 import drafter_pb2, types_pb2, verifier_pb2
from tests.rpc import messages

_CASES: list[tuple[st.SearchStrategy[Any], Callable[[Any], Message], Callable[[Any], Any]]] = [
    (messages.samplings, sampling_codec.sampling_to_pb, sampling_codec.sampling_from_pb),
    (messages.timings, codec.timings_to_pb, codec.timings_from_pb),
    (messages.arenas, codec.arena_to_pb, codec.arena_from_pb),
    (messages.verifier_descriptions, verifier_codec.description_to_pb, verifier_codec.description_from_pb),
    (messages.verify_batches, verifier_codec.verify_batch_to_pb, verifier_codec.verify_batch_from_pb),
    (messages.verify_answers, verifier_codec.verify_answer_to_pb, verifier_codec.verify_answer_from_pb),
    (messages.verifier_descriptions, drafter_codec.attach_request_to_pb, drafter_codec.attach_request_from_pb),
    (messages.drafter_descriptions, drafter_codec.attach_response_to_pb, drafter_codec.attach_response_from_pb),
    (messages.draft_batches, drafter_codec.draft_batch_to_pb, drafter_codec.draft_batch_from_pb),
    (messages.draft_answers, drafter_codec.draft_answer_to_pb, drafter_codec.draft_answer_from_pb),
]


@pytest.mark.parametrize("case", _CASES, ids=lambda case: case[1].__name__.removesuffix("_to_pb"))
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_round_trip(case: Any, data: st.DataObject) -> None:
    strategy, to_pb, from_pb = case
    record = data.draw(strategy)
    sent = to_pb(record)
    assert from_pb(type(sent).FromString(sent.SerializeToString())) == record


@pytest.mark.parametrize("change", [
    {"temperature": -0.1}, {"temperature": math.nan}, {"temperature": math.inf}, {"temperature": 1e-4},
    {"temperature": 1.1e6}, {"top_p": 0.0}, {"top_p": 1.1},
    {"top_p": math.nan}, {"choice": 2**16}, {"choice": -1}, {"top_k": -1}, {"top_k": 2**32}, {"min_p": -0.1},
    {"min_p": 1.1}, {"min_p": math.nan}, {"typical_p": 0.0}, {"typical_p": 1.1}, {"typical_p": math.nan},
    {"repetition_penalty": 0.0}, {"repetition_penalty": -1.0}, {"repetition_penalty": math.nan},
    {"repetition_penalty": math.inf}, {"presence_penalty": math.nan}, {"frequency_penalty": math.inf},
    {"logit_bias": ((1, math.nan),)}, {"logit_bias": ((2, 1.0), (1, 1.0))}, {"logit_bias": ((1, 1.0), (1, 2.0))},
    {"logit_bias": ((-1, 1.0),)}, {"logit_bias": ((2**32, 1.0),)}, {"min_tokens": -1}, {"min_tokens": 2**32},
    {"ending_token_ids": (-1,)}, {"ending_token_ids": (2**32,)},
])
def test_sampling_out_of_range(change: dict[str, Any]) -> None:
    with pytest.raises(ContractViolation):
        sampling_codec.sampling_to_pb(replace(Sampling(), **change))


@pytest.mark.parametrize("change", [
    {"temperature": -0.1}, {"temperature": math.nan}, {"temperature": 3.5e38}, {"top_p": 0.0}, {"choice": 2**16},
    {"rule": 0}, {"rule": 99}, {"min_p": math.inf}, {"typical_p": 0.0},
    {"repetition_penalty": 0.0}, {"repetition_penalty": math.inf}, {"presence_penalty": math.nan},
    {"frequency_penalty": -math.inf},
])
def test_received_sampling_out_of_range(change: dict[str, Any]) -> None:
    message = sampling_codec.sampling_to_pb(Sampling())
    for name, value in change.items():
        setattr(message, name, value)
    with pytest.raises(ContractViolation):
        sampling_codec.sampling_from_pb(message)


@pytest.mark.parametrize("message", [
    drafter_pb2.DraftRequest(items=[drafter_pb2.DraftItem(committed_len=1, draft_length=1)]),  # no sampling
    drafter_pb2.DraftRequest(items=[
        drafter_pb2.DraftItem(committed_len=1, sampling=sampling_codec.sampling_to_pb(Sampling()))  # draft_length 0
    ]),
    drafter_pb2.DraftRequest(items=[
        drafter_pb2.DraftItem(draft_length=1, sampling=sampling_codec.sampling_to_pb(Sampling()))  # nothing committed
    ]),
])
def test_bad_draft_request(message: drafter_pb2.DraftRequest) -> None:
    with pytest.raises(ContractViolation):
        drafter_codec.draft_batch_from_pb(message)


@pytest.mark.parametrize("seconds", [-0.1, math.nan, math.inf])
def test_bad_time_left(seconds: float) -> None:
    with pytest.raises(ContractViolation, match="time_left_s"):
        drafter_codec.draft_batch_from_pb(drafter_pb2.DraftRequest(time_left_s=seconds))
    with pytest.raises(ContractViolation, match="time_left_s"):
        verifier_codec.verify_batch_from_pb(verifier_pb2.VerifyRequest(time_left_s=seconds))


def test_a_batch_that_waited_has_less_time_left() -> None:
    batch = VerifyBatch(epoch=1, round=2, time_left_s=5.0)
    assert after_waiting(batch, time.monotonic() - 3.0).time_left_s == pytest.approx(2.0, abs=0.5)
    assert after_waiting(batch, time.monotonic() - 7.0).late
    endless = replace(batch, time_left_s=None)
    assert after_waiting(endless, time.monotonic() - 7.0) == endless and not endless.late


def test_bad_answers() -> None:
    stale = drafter_pb2.DraftResult(outcome=types_pb2.SLOT_OUTCOME_STALE, draft_tokens=[1])
    with pytest.raises(ContractViolation, match="stale"):
        drafter_codec.draft_answer_from_pb(drafter_pb2.DraftResponse(results=[stale]))
    with pytest.raises(ContractViolation, match="outcome"):
        verifier_codec.verify_answer_from_pb(verifier_pb2.VerifyResponse(results=[verifier_pb2.VerifyResult()]))
    greedy = verifier_pb2.VerifyResult(outcome=types_pb2.SLOT_OUTCOME_OK, accepted=2, token_ids=[1])
    with pytest.raises(ContractViolation, match="accepted"):
        verifier_codec.verify_answer_from_pb(verifier_pb2.VerifyResponse(results=[greedy]))


def test_bad_arena() -> None:
    with pytest.raises(ContractViolation, match="backend"):
        drafter_codec.attach_request_from_pb(drafter_pb2.AttachRequest())
    region = types_pb2.ArenaRegion(name="a", writer=types_pb2.REGION_WRITER_DRAFTER, offset=9)
    arena = types_pb2.ArenaDescriptor(backend=types_pb2.ARENA_BACKEND_HOST_SHM, size=8, regions=[region])
    with pytest.raises(ContractViolation, match="outside"):
        codec.arena_from_pb(arena)
    region.offset = 0
    arena = types_pb2.ArenaDescriptor(backend=types_pb2.ARENA_BACKEND_HOST_SHM, size=8, regions=[region, region])
    with pytest.raises(ContractViolation, match="same name"):
        codec.arena_from_pb(arena)
    region.file = 2
    arena = types_pb2.ArenaDescriptor(
        backend=types_pb2.ARENA_BACKEND_HOST_SHM, size=8, regions=[region], file_sizes=[4])
    with pytest.raises(ContractViolation, match="file"):
        codec.arena_from_pb(arena)
    region.file, region.offset = 1, 5
    arena = types_pb2.ArenaDescriptor(
        backend=types_pb2.ARENA_BACKEND_HOST_SHM, size=8, regions=[region], file_sizes=[4])
    with pytest.raises(ContractViolation, match="outside"):
        codec.arena_from_pb(arena)


@pytest.mark.parametrize("token", [-1, 2**32])
def test_numbers_that_do_not_fit_are_not_sent(token: int) -> None:
    verification = Verification(slot=0, lease=1, committed_len=1, pending_token=token, draft_tokens=())
    with pytest.raises(ContractViolation):
        verifier_codec.verify_batch_to_pb(VerifyBatch(epoch=1, round=1, verifications=(verification,)))


def test_the_wire_needs_no_torch() -> None:
    program = (
        "import sys, qspec.rpc.remote_drafter, qspec.rpc.remote_verifier, qspec.rpc.server, qspec.cli, qspec.status\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0


@pytest.mark.parametrize("result", [
    verifier_pb2.VerifyResult(
        outcome=types_pb2.SLOT_OUTCOME_OK, token_ids=[1, 2], logprobs=[types_pb2.TokenLogprobs()]),
    verifier_pb2.VerifyResult(
        outcome=types_pb2.SLOT_OUTCOME_OK, token_ids=[1], logprobs=[types_pb2.TokenLogprobs(top_token_ids=[3])]),
    verifier_pb2.VerifyResult(
        outcome=types_pb2.SLOT_OUTCOME_OK, prompt_logprobs=[types_pb2.TokenLogprobs(top_logprobs=[-1.0])]),
])
def test_bad_logprobs(result: verifier_pb2.VerifyResult) -> None:
    with pytest.raises(ContractViolation):
        verifier_codec.verify_answer_from_pb(verifier_pb2.VerifyResponse(results=[result]))
