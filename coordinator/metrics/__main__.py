"""``python -m coordinator.metrics``: the table of ``docs/metrics.md``."""

from __future__ import annotations

from collections.abc import Iterator

from coordinator.metrics.catalogue import METRICS


def table() -> Iterator[str]:
    """Lines of Markdown, one for each metric."""
    yield "| metric | type | labels | meaning | vLLM |"
    yield "| --- | --- | --- | --- | --- |"
    for spec in METRICS:
        labels = ", ".join(f"`{label}`" for label in spec.labels)
        vllm = "yes" if spec.like_vllm else ""
        yield f"| `{spec.name}` | {spec.kind.value} | {labels} | {spec.help} | {vllm} |"


if __name__ == "__main__":
    print(*table(), sep="\n")
