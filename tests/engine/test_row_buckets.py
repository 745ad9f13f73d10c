"""Warm-up captures every size that decoding can ask for."""

from __future__ import annotations

from qspec.engine.row_buckets import ROW_BUCKETS, decided_bucket, decided_buckets, padded_pieces, padded_rows


def test_every_pass_has_a_graph_that_warm_up_captured() -> None:
    for rows in range(1, 257):
        padded = padded_rows(rows)
        assert padded in ROW_BUCKETS and padded >= rows
        assert {decided_bucket(asked, padded) for asked in range(1, rows + 1)} <= set(decided_buckets(padded))


def test_contexts_of_usual_requests_share_their_graphs() -> None:
    assert [padded_pieces(pieces, 32) for pieces in (1, 3, 4, 5, 9, 32)] == [4, 4, 4, 8, 16, 32]
    assert [padded_pieces(pieces, 6) for pieces in (1, 5, 6)] == [4, 6, 6]
    assert padded_pieces(1, 2) == 2
