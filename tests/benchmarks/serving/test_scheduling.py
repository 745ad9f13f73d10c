"""What a round has besides its calls."""

from __future__ import annotations

import pytest

from benchmarks.serving.feeding import gaps_together
from benchmarks.serving.scheduling import round_shares
from tests.benchmarks.serving.streams import block, even_stream, stream


def test_the_stream_that_came_first_decides() -> None:
    waited = stream([(1.0, 1)], due_s=0.1, server_s=4.0, call_s=1.0, rpc_s=0.1)
    first = stream([(1.0, 1)], server_s=2.0, call_s=1.5, rpc_s=0.5)
    shares = round_shares(block([waited, first]))
    assert shares.scheduling == pytest.approx(0.25)
    assert shares.rpc == pytest.approx(0.25)
    assert (shares.rounds, shares.round_s) == (2, 1.0)


def test_gaps_count_once_all_streams_have_begun() -> None:
    early = stream([(0.0, 1), (5.0, 1), (6.0, 1), (7.0, 1)])
    assert gaps_together(block([early, even_stream(3, start=5.5, every=0.5)])) == pytest.approx([1.0, 0.5, 0.5])
