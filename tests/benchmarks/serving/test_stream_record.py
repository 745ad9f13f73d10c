"""A stream's times from its messages."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from benchmarks.serving.stream_record import StreamRecord
from qspec.errors import QspecError
from qspec.v1 import generation_pb2 as pb
from tests.benchmarks.serving.streams import stream


def message(*token_ids: int, last: bool = False, lost: int = 0) -> bytes:
    """One message of the server, serialised."""
    piece = pb.GenerateResponse(token_ids=token_ids)
    if last:
        piece.finish_reason = pb.FINISH_REASON_LENGTH
        piece.usage.total_s = 2.5
        piece.speculation.MergeFrom(
            pb.SpeculationStats(rounds=3, draft_s=0.5, verify_s=1.5, rpc_s=0.2, rounds_without_drafter=lost))
    return piece.SerializeToString()


def test_latencies_count_from_when_the_request_was_due() -> None:
    record = StreamRecord.of(1.0, 1.25, [(2.0, message(4, 5)), (2.5, message(6, 7)), (4.0, message(8, 9, last=True))])
    assert record.tokens == 6
    assert (record.first_token_s, record.end_to_end_s) == (1.0, 3.0)
    assert record.per_token_s == pytest.approx(2.0 / 4)
    assert record.gaps_s == [0.5, 1.5]
    assert (record.server_s, record.call_s, record.rpc_s) == (2.5, 2.0, 0.2)


def test_a_message_without_tokens_is_no_delivery() -> None:
    record = StreamRecord.of(0.0, 0.0, [(1.0, message()), (2.0, message(5)), (3.0, message(last=True))])
    assert record.deliveries == ((2.0, 1),)
    assert record.per_token_s is None


def test_texts_are_told_apart_by_their_tokens_and_not_by_their_messages() -> None:
    one = StreamRecord.of(0.0, 0.0, [(1.0, message(5, 6)), (2.0, message(7, last=True))])
    same = StreamRecord.of(0.0, 0.0, [(1.0, message(5)), (2.0, message(6, 7, last=True))])
    other = StreamRecord.of(0.0, 0.0, [(1.0, message(5)), (2.0, message(67, last=True))])
    assert one.digest == same.digest != other.digest


@pytest.mark.parametrize("messages", [[], [(1.0, message(5))], [(1.0, message(last=True))]])
def test_a_stream_that_broke_off_is_an_error(messages: list[tuple[float, bytes]]) -> None:
    with pytest.raises(QspecError, match="ended without"):
        StreamRecord.of(0.0, 0.0, messages)


def test_a_run_without_its_drafter_says_nothing() -> None:
    with pytest.raises(QspecError, match="drafter was lost"):
        StreamRecord.of(0.0, 0.0, [(1.0, message(5, last=True, lost=1))])


def test_a_record_survives_its_way_through_json() -> None:
    record = stream([(1.0, 1), (1.5, 3)], due_s=0.5)
    assert StreamRecord.from_json(json.loads(json.dumps(asdict(record)))) == record
