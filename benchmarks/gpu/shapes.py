"""Shapes of linear layers and of layers that are measured."""

from __future__ import annotations

from dataclasses import dataclass

ROWS = (1, 4, 8, 16, 32, 64, 128, 256, 1024)
"""Numbers of rows; the last is a chunk of a prompt."""
SWEEP = (1, 4, 8, 16, 32, 64, 128, 256)
"""Numbers of rows at which every kernel is held against its floor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What kernels see of a model."""

    name: str
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int

    @property
    def qkv(self) -> int:
        """Outputs of the product that makes queries, keys and values."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Outputs and inputs of each linear layer."""
        return {
            "qkv": (self.qkv, self.hidden),
            "attention_out": (self.hidden, self.heads * self.head_dim),
            "mlp_in": (2 * self.intermediate, self.hidden),
            "mlp_out": (self.hidden, self.intermediate),
        }


LLAMA_8B = ModelShape(
    name="Llama-3-8B", hidden=4096, intermediate=14336, heads=32, kv_heads=8, head_dim=128, vocabulary=128256)
SMOLLM2_7 = ModelShape(
    name="SmolLM2 x7", hidden=4032, intermediate=10752, heads=63, kv_heads=21, head_dim=64, vocabulary=49152)
SMOLLM2_12 = ModelShape(
    name="SmolLM2 x12", hidden=6912, intermediate=18432, heads=108, kv_heads=36, head_dim=64, vocabulary=49152)
TRIAL = ModelShape(
    name="trial", hidden=128, intermediate=192, heads=4, kv_heads=2, head_dim=32, vocabulary=256)
"""For trying the benchmark out without a GPU."""


def linear_shapes(models: tuple[ModelShape, ...]) -> list[tuple[int, int]]:
    """All shapes of the models, the most telling first."""
    names = ("mlp_in", "mlp_out", "attention_out", "qkv")
    shapes = [model.linears[name] for model in models for name in names]
    return [*shapes, *((model.vocabulary, model.hidden) for model in models)]
