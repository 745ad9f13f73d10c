"""A scrape, read back with the client library's own parser."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from coordinator.metrics.collector import StackCollector
from coordinator.serving import Serving


@dataclass(frozen=True)
class Scrape:
    """Values by name and labels, and what ``# TYPE`` and ``# HELP`` say by metric."""

    values: dict[tuple[str, frozenset[tuple[str, str]]], float]
    types: dict[str, str]
    helps: dict[str, str]
    labels: dict[str, frozenset[str]]

    def __call__(self, name: str, **labels: str) -> float:
        """The value of a series, of the only pair where there are pairs; fails where it is not there."""
        of_pair = self.values.get((name, frozenset({**labels, "pair": "1"}.items())))
        return self.values[name, frozenset(labels.items())] if of_pair is None else of_pair


def scrape(serving: Serving) -> Scrape:
    """What the endpoint would answer now, of our own metrics."""
    registry = CollectorRegistry()
    registry.register(StackCollector(serving))
    return read_scrape(generate_latest(registry).decode())


def read_scrape(text: str) -> Scrape:
    """An answer of the endpoint."""
    values, types, helps, labels = {}, {}, {}, {}
    for family in text_string_to_metric_families(text):
        if not family.name.startswith("qspec_"):
            continue
        name = family.name + ("_total" if family.type == "counter" else "")
        types[name], helps[name] = family.type, family.documentation
        for sample in family.samples:
            values[sample.name, frozenset(sample.labels.items())] = sample.value
            labels[name] = frozenset(sample.labels) - {"le"}
    return Scrape(values, types, helps, labels)
