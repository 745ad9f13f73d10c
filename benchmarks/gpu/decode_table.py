"""What the sections of ``decode`` found, as tables for people."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from qspec.draft_length import expected_tokens

_ACCEPTANCES = (0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
LEAST_OVER_PLAIN = 0.98
"""Of plain decoding: what the controller's draft lengths never fall below."""


def table_lines(records: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Lines about all sections that are there."""
    for name, record in records.items():
        if re.fullmatch(r"x\d+", name):
            yield from _cells(name, record, records)
        elif name.startswith("stack"):
            yield from _stack(name, record)


def plain_rate(record: Mapping[str, Any], batch: int, temperature: float) -> tuple[float, float] | None:
    """Tokens per second and seconds of a pass of plain decoding, before and after the drafts; None: not measured."""
    name = f"batch {batch} temperature {temperature:g} k 0"
    found = [record[each] for each in (name, f"{name} again") if each in record]
    if not found:
        return None
    rate, step_s = (sum(each[figure] for each in found) / len(found) for figure in ("tokens_per_s", "verify_s"))
    return rate, step_s


def rows_of(record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Each cell with c, v, measured and predicted speed-up."""
    for cell in record.values():
        if not isinstance(cell, Mapping) or "tokens_per_round" not in cell:
            continue
        plain = plain_rate(record, cell["batch"], cell["temperature"])
        if plain is None:
            continue
        rate, step_s = plain
        c = None if cell["draft_step_s"] is None else cell["draft_step_s"] / step_s
        v = cell["verify_s"] / step_s
        yield {**cell, "c": c, "v": v, "speed_up": cell["tokens_per_s"] / rate,
               "predicted": cell["tokens_per_round"] / (cell["mean_draft_length"] * (c or 0.0) + v),
               "plain_s": step_s}


def _cells(name: str, record: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    about = record["about"]
    floor_s = about["step_bytes"] / about["read_bytes_per_s"]
    yield (f"## {name}: {about['draft']} → {about['verify']}, {about['step_bytes'] / 1e9:.2f} GB a step, arena "
           f"{about['memory']['arena_over_fp16']:.3f} of fp16 weights and KV blocks")
    yield "| batch | T | k | tok/s | of a pure read | c | v | accepted | speed-up | predicted | outside µs |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    rows = list(rows_of(record))
    for row in rows:
        c, accepted = ("–" if row[each] is None else f"{row[each]:.3f}" for each in ("c", "acceptance"))
        share = f"{floor_s / row['verify_s']:.2f}" if row["k"] == 0 else ""
        yield (f"| {row['batch']} | {row['temperature']:g} | {row['k']} | {row['tokens_per_s']:.1f} | {share} | {c} | "
               f"{row['v']:.3f} | {accepted} | {row['speed_up']:.3f} | {row['predicted']:.3f} | "
               f"{row['outside_s'] * 1e6:.0f} |")
    for row in rows:
        if row["k"] == "auto":
            verdict = "ok" if row["speed_up"] >= LEAST_OVER_PLAIN else "MISSED"
            yield f"auto over plain, batch {row['batch']}, T {row['temperature']:g}: {row['speed_up']:.3f} {verdict}"
    yield from _by_acceptance(rows)
    for cell, found in record.items():
        if cell.startswith("profile"):
            parts = ", ".join(f"{kind} {us:.0f}" for kind, us in found["kernels_us"].items())
            yield (f"{cell}: a round of {found['round_us']:.0f} µs: {parts}; some kernel runs {found['busy_us']:.0f}, "
                   f"none {found['nothing_runs_us']:.0f}; {found['launches']:.0f} launches")
    other = records.get(f"transformers-{name}", {})
    for batch in (1, 8):
        plain, theirs = plain_rate(record, batch, 0.0), other.get(f"batch {batch}")
        best = max((row["tokens_per_s"] for row in rows if (row["batch"], row["temperature"]) == (batch, 0.0)),
                   default=None)
        if plain and theirs and best:
            yield (f"transformers, batch {batch}: {theirs['tokens_per_s']:.1f} tok/s; plain "
                   f"{plain[0] / theirs['tokens_per_s']:.1f} times, best {best / theirs['tokens_per_s']:.1f} times")
    if assisted := other.get("assisted, batch 1"):
        yield f"transformers with an assistant, batch 1: {assisted['tokens_per_s']:.1f} tok/s"


def _by_acceptance(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The best draft length and its speed-up for some acceptances, from the measured c and v."""
    for batch, temperature in dict.fromkeys((row["batch"], row["temperature"]) for row in rows):
        costs = {row["k"]: (row["c"] or 0.0, row["v"]) for row in rows
                 if (row["batch"], row["temperature"]) == (batch, temperature) and row["k"] != "auto"}
        parts = []
        for acceptance in _ACCEPTANCES:
            gain, length = max(
                (expected_tokens(acceptance, length) / (length * c + v), length) for length, (c, v) in costs.items())
            parts.append(f"{acceptance}: {gain:.2f} (k = {length})")
        yield f"by acceptance, batch {batch}, T {temperature:g}: " + ", ".join(parts)


def _stack(name: str, record: Mapping[str, Any]) -> Iterator[str]:
    yield f"## {name}, over gRPC"
    for cell, found in record.items():
        if cell.startswith("batch"):
            shares = found["shares"]
            yield (f"{cell}: {found['decode_tokens_per_s']:.1f} tok/s, a round {found['round_s'] * 1e3:.3f} ms: RPC "
                   f"{shares['rpc']:.1%}, scheduling {shares['scheduling']:.1%}, draft calls {shares['draft']:.1%}, "
                   f"verify calls {shares['verify']:.1%}")
