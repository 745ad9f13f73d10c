"""The benchmark of the metrics' cost runs, and ends in a line of JSON."""

from __future__ import annotations

import json

import pytest

from benchmarks import metrics_cost


def test_figures(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(metrics_cost, "ROUNDS", 3)
    metrics_cost.main()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["round_ns"].keys() == {"1", "8", "64"}
    assert min(figures["round_ns"].values()) > 0 < figures["scrape_ns"]
