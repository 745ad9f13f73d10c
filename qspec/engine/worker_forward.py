"""The two workers' forwards over an arena: native kernels or torch's operations, as their plans say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from qspec.config import StackConfig
from qspec.engine.forward import DraftCache, DraftForward, Forward
from qspec.engine.linears import drafter_linears, kernel_names, verifier_linears
from qspec.engine.regions import DRAFT_PROBS, KV_KEYS, KV_VALUES, TAIL_KEYS, TAIL_VALUES
from qspec.engine.torch_forward import TorchForward
from qspec.engine.weights import fp32_tensors, shared_parts, stored_embedding
from qspec.interfaces import Progress, VerifierDescription
from qspec.kernels.paged_attention import probe_attention_tiles
from qspec.kernels.row_tiles import CANDIDATE_ROWS
from qspec.memory.attachment import Arena
from qspec.models.config import DecoderConfig
from qspec.models.decoder import Decoder, Linear
from qspec.quant.codecs import CODECS, Parts
from qspec.quant.method_plan import MethodPlan
from qspec.quant.methods import Backend
from qspec.threads import native_threads

if TYPE_CHECKING:
    from qspec.engine.cuda_buffers import PassLimits


def verifier_forward(
    arena: Arena, model: DecoderConfig, config: StackConfig, plan: MethodPlan, max_model_len: int,
    shapes: Mapping[str, tuple[int, ...]], progress: Progress,
) -> tuple[Forward, str]:
    """The verifier's forward over its arena, and its kernels' name; ``shapes``: of the canonical fp32 tensors."""
    tensors, parts = fp32_tensors(arena), shared_parts(arena, plan.layers, plan, plan)
    names = "; ".join(kernel_names(plan))
    if plan.backend is Backend.CUDA:
        from qspec.engine.cuda_decoder import CudaDecoder
        from qspec.engine.cuda_forward import CudaForward
        from qspec.engine.cuda_warm_up import warm_up_verifier

        limits = verifier_limits(model, config, max_model_len)
        on_gpu = CudaForward(CudaDecoder(model, plan, parts, tensors, stored_embedding(arena, plan), limits))
        warm_up_verifier(
            on_gpu, arena.tensor(KV_KEYS), arena.tensor(KV_VALUES), arena.tensor(DRAFT_PROBS), progress)
        return on_gpu, names
    if plan.backend is Backend.CPU_NATIVE:
        from qspec.engine.native_forward import NativeForward, shared_threads  # loads the extension

        count = native_threads(config.threads, progress)
        embedding = stored_embedding(arena, plan)
        native = NativeForward(model, plan, parts, tensors, embedding, max_model_len, shared_threads(count))
        return native, f"{names}, on {count} {'thread' if count == 1 else 'threads'}"
    progress("probing row tiles", None)
    linears, tiles = verifier_linears(plan, parts, tensors, shapes)
    heads = (model.num_heads, model.num_kv_heads, model.head_dim)
    attention_tiles = probe_attention_tiles(*heads, config.block_size, CANDIDATE_ROWS)
    decoder = Decoder(model, tensors, linears, max_model_len)
    forward = TorchForward(decoder, attention_tiles=attention_tiles, linear_tiles=tiles)
    return forward, f"{names}, row tiles of {_ranges(tiles.sizes)}"


def drafter_forward(
    arena: Arena, model: DecoderConfig, plan: MethodPlan, store: MethodPlan, parts: Mapping[str, Parts],
    packed: Mapping[str, Linear], verifier: VerifierDescription, threads: int, progress: Progress,
) -> DraftForward:
    """The drafter's forward over the verifier's arena, which was laid out for ``store``.

    ``parts``: the linear layers in the formats of ``plan``, except those that are ``packed``.
    """
    tensors, embedding = fp32_tensors(arena), stored_embedding(arena, store)
    positions = verifier.max_model_len + verifier.max_draft_length
    if plan.backend is Backend.CUDA:
        from qspec.engine.cuda_decoder import CudaDecoder
        from qspec.engine.cuda_forward import CudaForward
        from qspec.engine.cuda_warm_up import warm_up_drafter

        limits = drafter_limits(
            model, verifier.max_slots, verifier.max_draft_length, verifier.block_size, verifier.max_model_len)
        on_gpu = CudaForward(
            CudaDecoder(model, plan, parts, tensors, embedding, limits), max(verifier.max_draft_length, 1))
        tails = DraftCache(*map(arena.tensor, (KV_KEYS, KV_VALUES, TAIL_KEYS, TAIL_VALUES)))
        warm_up_drafter(on_gpu, tails, arena.tensor(DRAFT_PROBS), verifier.max_slots, progress)
        return on_gpu
    if plan.backend is Backend.CPU_NATIVE:
        from qspec.engine.native_forward import NativeForward, shared_threads

        return NativeForward(model, plan, parts, tensors, embedding, positions, shared_threads(threads))
    tensors["embed"] = CODECS[embedding.format].decode(embedding.parts)
    linears = {**packed, **drafter_linears(plan, parts, tensors)}
    return TorchForward(Decoder(model, tensors, linears, positions, row_invariant=False))


def verifier_limits(model: DecoderConfig, config: StackConfig, max_model_len: int) -> PassLimits:
    """The largest pass of a verifier on a GPU."""
    from qspec.engine.cuda_buffers import PassLimits  # loads triton

    return PassLimits.of(
        model, rows=config.max_batch_rows, sequences=config.max_slots, positions=max_model_len,
        block_size=config.block_size)


def drafter_limits(
    model: DecoderConfig, max_slots: int, max_draft_length: int, block_size: int, max_model_len: int
) -> PassLimits:
    """The largest draft step on a GPU."""
    from qspec.engine.cuda_buffers import PassLimits  # loads triton

    return PassLimits.of(
        model, rows=max_slots, sequences=max_slots, positions=max_model_len + max_draft_length, block_size=block_size)


def _ranges(sizes: tuple[int, ...]) -> str:
    """``(2, 3, 4, 8)`` as ``2-4, 8``."""
    runs: list[list[int]] = []
    for size in sizes:
        if runs and size == runs[-1][-1] + 1:
            runs[-1].append(size)
        else:
            runs.append([size])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
