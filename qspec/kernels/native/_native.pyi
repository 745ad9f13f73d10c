from collections.abc import Sequence

INTERFACE: int

def instruction_sets() -> list[str]: ...

class ThreadPool:
    def __init__(self, threads: int, spin_microseconds: int, bind: bool) -> None: ...
    @property
    def threads(self) -> int: ...

class Matrix: ...

def matrix(
    *,
    format: int,  # noqa: A002  (qspec::Format)
    activations: int,
    outputs: int,
    inputs: int,
    group: int,
    scale_factor: float,
    codes: int,
    low: int,
    scales: int,
    zeros: int,
    minima: int,
    bias: int,
    table: Sequence[float],
) -> Matrix: ...

class Norm:
    def __init__(self, weight: int, bias: int) -> None: ...

class Layer:
    def __init__(
        self,
        *,
        qkv: Matrix,
        attention_out: Matrix,
        mlp_in: Matrix,
        mlp_out: Matrix,
        attention_norm: Norm,
        mlp_norm: Norm,
        q_norm: int,
        k_norm: int,
    ) -> None: ...

class Cache:
    def __init__(self) -> None: ...
    def set_blocks(
        self,
        *,
        keys: int,
        values: int,
        layer_stride: int,
        block_stride: int,
        head_stride: int,
        blocks: int,
        block_size: int,
    ) -> None: ...
    def set_tail(
        self,
        *,
        keys: int,
        values: int,
        layer_stride: int,
        slot_stride: int,
        head_stride: int,
        slots: int,
        size: int,
    ) -> None: ...

class Span:
    def __init__(
        self, first_row: int, rows: int, start: int, context: int, slot: int, block_ids: Sequence[int]
    ) -> None: ...

class Decoder:
    def __init__(
        self,
        *,
        instruction_set: str,
        pool: ThreadPool,
        vocab: int,
        hidden: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        intermediate: int,
        max_positions: int,
        norm_eps: float,
        gated: bool,
        gelu: bool,
        embedding: Matrix,
        lm_head: Matrix,
        position_embed: int,
        cos: int,
        sin: int,
        final_norm: Norm,
        layers: Sequence[Layer],
    ) -> None: ...
    def hidden(self, tokens: Sequence[int], spans: Sequence[Span], cache: Cache, out: int) -> None: ...
    def logits(self, hidden: int, rows: int, out: int) -> None: ...
    def greedy(self, hidden: int, rows: int) -> list[int]: ...

def linear(instruction_set: str, matrix: Matrix, x: int, rows: int, out: int, pool: ThreadPool) -> None: ...
def read_memory(data: int, bytes: int, pool: ThreadPool) -> int: ...  # noqa: A002
def decode_rows(instruction_set: str, matrix: Matrix, out: int) -> None: ...
def apply(
    instruction_set: str, name: str, x: int, second: int, third: int, eps: float, rows: int, size: int, out: int
) -> None: ...
