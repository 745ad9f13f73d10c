"""A drafter's weights: which layers read the verifier's, and its own copies of the others.

Layer by layer, the drafter reads the arena where the verifier's format is its own or holds it as a plane; else it has a
file of its own, which is mapped as well, or on a GPU memory of its own. On torch's operations ``w8a8`` always keeps a
private packed copy (fbgemm's layout cannot be shared).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qspec.config import StackConfig
from qspec.engine.backend import tell_fallback
from qspec.engine.linears import is_packed, is_plain, kernel_name, packed_linears, packed_name, working_memory
from qspec.engine.weight_files import open_weights
from qspec.engine.weights import WeightRegion, layer_regions, parts_bytes, private_embedding_bytes, shared_parts
from qspec.interfaces import MemoryItem, Progress
from qspec.kernels.int8_linear import Int8Linear
from qspec.memory.budget import budget_lines
from qspec.models.converted import ConvertedModel
from qspec.models.decoder import linear_names
from qspec.models.layer_weights import LayerWeights
from qspec.quant.codecs import Parts
from qspec.quant.method_plan import MethodPlan, plan_draft, plan_verify
from qspec.quant.methods import Backend, Role
from qspec.threads import native_threads


@dataclass(frozen=True, slots=True)
class DraftWeights:
    """Made by ``prepare``."""

    config: StackConfig
    methods: MethodPlan
    """The drafter's."""
    store: MethodPlan
    """The verifier's: what lies in the arena."""
    private: Mapping[str, Parts]
    """Layers with weights of the drafter's own."""
    packed: Mapping[str, Int8Linear]
    """Layers whose weights a library keeps in its own form."""
    shared: tuple[str, ...]
    """Layers that read the arena."""
    threads: int
    """Of the native kernels; 0 with torch's operations."""
    memory: tuple[MemoryItem, ...]
    """What the drafter holds for itself: an item for each format, and room to work."""

    @classmethod
    def prepare(
        cls, model: ConvertedModel, config: StackConfig, backend: Backend, progress: Progress
    ) -> DraftWeights:
        """Plan the methods and make what has to be private. ``InvalidInput`` as of the plans."""
        store = plan_verify(config, linear_names(model.config), backend, stored=model.stored)
        methods = plan_draft(config, backend, verify=store, stored=model.stored)
        if methods.backend is Backend.CUDA:
            from qspec.engine.gpu_support import check_formats

            check_formats(methods, Role.DRAFT)
        tell_fallback("drafter", backend, methods, progress)
        native = methods.backend is Backend.CPU_NATIVE
        threads = native_threads(config.threads, progress) if native else 0
        packed_names = [
            name for name, choice in methods.layers.items() if methods.backend is Backend.CPU and is_packed(choice)]
        stored = [name for name in methods.layers if name not in packed_names]
        private_names = [name for name in stored if not methods.held_by(store, name)]
        packed: dict[str, Int8Linear] = {}
        if packed_names:
            with model.open_weights() as weights, model.open_int8() as int8:
                packed = packed_linears(packed_names, int8, weights, progress)
        with model.open_layers() as layers:
            shapes = {name: layers.tensors.shape(name) for name in stored}
            wanted = layer_regions(private_names, shapes, methods)
            if methods.backend is Backend.CUDA:
                private = _on_gpu(wanted, private_names, methods, layers, progress)
            else:
                own = open_weights(wanted, model.fingerprint, layers, progress)
                private = shared_parts(own, private_names, methods, methods)
                own.close()
        for name in dict.fromkeys(
            kernel_name(choice, methods.backend)
            for choice in map(methods.layers.__getitem__, stored) if not is_plain(choice)
        ):
            progress(name, None)
        items = _memory(model, methods, store, private, packed)
        return cls(
            config, methods, store, private, packed, tuple(name for name in stored if name not in private), threads,
            (*items, *working_memory(methods, shapes, stored)),
        )

    def kernel_name(self) -> str:
        """All kernels in the order of use, and whose weights they read."""
        return "; ".join(dict.fromkeys(map(self._layer_kernel, self.methods.layers)))

    def _layer_kernel(self, name: str) -> str:
        if name in self.packed:
            return packed_name()
        owner = "its own" if name in self.private else "the verifier's"
        return f"{kernel_name(self.methods.layers[name], self.methods.backend)}, {owner} weights"


def _on_gpu(
    wanted: Sequence[WeightRegion], names: Sequence[str], methods: MethodPlan, layers: LayerWeights, progress: Progress
) -> dict[str, Parts]:
    """Weights of the drafter's own in the GPU's memory. ``OutOfMemory`` before anything is allocated."""
    if not wanted:
        return {}
    from qspec.engine.device_weights import stream_weights
    from qspec.memory.cuda_arena import CudaArena

    sizes = Counter[str]()
    for region in wanted:
        sizes[region.weights] += region.spec.bytes
    items = [MemoryItem(name=f"weights {weights}", bytes=size, shared=False) for weights, size in sizes.items()]
    own = CudaArena.create(
        [region.spec for region in wanted], epoch=0, fingerprint="a drafter's own",
        budget=budget_lines("drafter", items))
    stream_weights(own, wanted, layers, progress)
    private = shared_parts(own, names, methods, methods)
    own.close()  # the memory goes with the last of the tensors
    return private


def _memory(
    model: ConvertedModel, methods: MethodPlan, store: MethodPlan, private: Mapping[str, Parts],
    packed: Mapping[str, Int8Linear],
) -> list[MemoryItem]:
    """Weights of the drafter's own, an item for each format."""
    items = []
    if packed:
        size = sum(linear.bytes for linear in packed.values())
        items.append(MemoryItem(name="weights int8, packed", bytes=size, shared=False))
    mapped = methods.backend is not Backend.CUDA
    by_format: dict[str, dict[str, Parts]] = {}
    for name, parts in private.items():
        by_format.setdefault(methods.weights(name), {})[name] = parts
    for weights, stored in by_format.items():
        items.append(
            MemoryItem(name=f"weights {weights}", bytes=parts_bytes(stored), shared=False, mapped_file=mapped))
    if size := private_embedding_bytes(model.config, methods, store):
        items.append(MemoryItem(name="embedding fp32", bytes=size, shared=False))
    return items
