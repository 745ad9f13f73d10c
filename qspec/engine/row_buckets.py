"""Numbers of rows that passes on a GPU are padded to, so that few CUDA graphs serve all of them."""

from __future__ import annotations

ROW_BUCKETS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 128, 160, 192, 256)
"""Up to 16 rows cost a product the same; beyond, padding stays below a third."""

_GATHERED_ROWS = (16, 64)
"""Of a pass of more rows, so many are gathered for ``lm_head`` where these are enough: most of a prompt's are not."""


def padded_rows(rows: int) -> int:
    """The least bucket that holds ``rows`` rows; the largest one where none does."""
    return next((bucket for bucket in ROW_BUCKETS if bucket >= rows), ROW_BUCKETS[-1])


_LEAST_PIECES = 4
"""Pieces of attention of the smallest graphs: a program without keys ends at once, and contexts of usual requests grow
through no capture."""


def padded_pieces(pieces: int, most: int) -> int:
    """The least power of two from ``pieces`` and 4 on, up to ``most``; at least 1."""
    return max(min(1 << (max(pieces, _LEAST_PIECES) - 1).bit_length(), most), 1)


def decided_bucket(asked: int, rows: int) -> int:
    """Rows that go through ``lm_head`` where ``asked`` of a pass's ``rows`` are decided on: all or a few."""
    return next((bucket for bucket in _GATHERED_ROWS if asked <= bucket <= rows), rows)


def decided_buckets(rows: int) -> list[int]:
    """All that ``decided_bucket`` can say of a pass of ``rows`` rows."""
    return [*(bucket for bucket in _GATHERED_ROWS if bucket < rows), rows]
