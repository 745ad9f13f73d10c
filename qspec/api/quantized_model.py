"""One model under one quantisation method: called for logits, decoded with, drafted with."""

from __future__ import annotations

from functools import cached_property
from types import TracebackType

import torch
from torch import Tensor

from qspec.api.engines import Engines
from qspec.api.method_choice import backend_of, can_draft, can_verify, check_method
from qspec.api.prompt_batch import read_prompts
from qspec.config import StackConfig
from qspec.engine.cached_decoder import CachedDecoder
from qspec.engine.forward import Forward
from qspec.engine.separate_drafter import DraftModel, SeparateDrafter
from qspec.errors import InvalidInput
from qspec.models.tokenizer import Tokenizer
from qspec.quant.methods import NO_DRAFTER

DEFAULT_KV_TOKENS = StackConfig().kv_tokens
DEFAULT_MAX_DRAFT_LENGTH = StackConfig().max_draft_length


class QuantizedModel:
    """A decoder-only model of any supported family, loaded once and kept until ``close`` (or ``with``).

    ``name``: alias (``smollm2``), local directory, GGUF file or hub id. ``quantization_method``: a name of
    ``qspec.quant.methods.METHODS``, as text or ``QuantizationMethod``. ``device``: as torch names it. ``overrides``:
    other methods for single linear layers, ``GLOB=METHOD,…`` (``qspec.quant.overrides``). ``kv_tokens``: positions in
    the KV cache, all rows of a batch together. ``max_draft_length``: the largest ``gamma``.

    Raises ``ModelError`` for a model that cannot be found or read, ``InvalidInput`` for a method or device that this
    machine lacks (listing what there is), ``OutOfMemory`` with the memory budget. Used by one thread at a time.

    A method for drafting only is kept beside the model's own weights, whose norms and embeddings it reads.
    """

    def __init__(
        self,
        name: str,
        quantization_method: str = "none",
        device: str | torch.device = "cpu",
        *,
        overrides: str = "",
        kv_tokens: int = DEFAULT_KV_TOKENS,
        max_draft_length: int = DEFAULT_MAX_DRAFT_LENGTH,
    ) -> None:
        backend = backend_of(str(device))
        method = check_method(quantization_method, backend)
        config = StackConfig(
            model=name,
            draft_quantization=method if can_draft(method, backend) else NO_DRAFTER,
            verify_quantization=method if can_verify(method, backend) else "none",
            draft_overrides=overrides,
            verify_overrides=overrides if can_verify(method, backend) else "",
            kv_tokens=kv_tokens, max_draft_length=max_draft_length, device="cpu",
        )
        verifies = config.verify_quantization == method
        self._set(Engines(config, drafting=not verifies), method, verifies=verifies)

    @classmethod
    def view(cls, engines: Engines, method: str, *, verifies: bool) -> QuantizedModel:
        """One side of loaded engines: the verifier, or the drafter over the same weights."""
        model = cls.__new__(cls)
        model._set(engines, method, verifies=verifies)
        return model

    def _set(self, engines: Engines, method: str, *, verifies: bool) -> None:
        self._engines, self._method, self._verifies = engines, method, verifies
        self._drafts_for: tuple[Engines, SeparateDrafter] | None = None

    # ---- what it is -------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The model, as it was named."""
        return self._engines.config.model

    @property
    def quantization_method(self) -> str:
        """The method's name."""
        return self._method

    @property
    def verifies(self) -> bool:
        """Whether the method can decide on tokens; one for drafting only cannot."""
        return self._verifies

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return torch.device("cpu")

    @property
    def vocab_size(self) -> int:
        """Last dimension of the logits."""
        return self._engines.description.vocab_size

    @property
    def max_length(self) -> int:
        """Most positions of one row, prompt and new tokens together."""
        return self._engines.description.max_model_len

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Tokens that end a text; the smallest one pads shorter rows of a result (0 when there is none)."""
        return self.tokenizer.eos_token_ids

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer: ``encode``, ``encode_chat``, ``decode``."""
        return self._engines.tokenizer

    @property
    def engines(self) -> Engines:
        """What the sampling functions work with."""
        return self._engines

    def __repr__(self) -> str:
        return f"QuantizedModel({self.name!r}, {self._method!r})"

    # ---- what it does -----------------------------------------------------------------------------------------------

    def __call__(self, input_ids: Tensor) -> Tensor:
        """Logits of the next token at every position: ``[batch, length]`` to float32 ``[batch, length, vocab]``.

        Rows do not see each other, nor a position those behind it; so right padding changes nothing before it. A model
        that verifies gives the bits that it decides by. ``InvalidInput`` for tokens outside the vocabulary, and for
        rows longer than ``max_length``.
        """
        rows = read_prompts(input_ids, None, self.vocab_size, "input_ids")
        if len(rows[0]) > self.max_length:
            raise InvalidInput.field("input_ids", f"is {len(rows[0])} tokens long; the most are {self.max_length}")
        cached = self._cached_decoder(-(-len(rows[0]) // self._engines.description.block_size))
        return torch.stack([cached.score(row, self._engines.description.max_batch_rows) for row in rows])

    def draft_model(self) -> DraftModel:
        """This model as the drafter of another one: with its kernels for drafting where the method has such."""
        return DraftModel(
            forward=self._forward,
            method=self._method,
            vocab_fingerprint=self._engines.verifier.vocab_fingerprint,
            max_positions=self.max_length,
        )

    def drafter_for(self, target: Engines) -> SeparateDrafter:
        """The drafter that drafts with this model for another model's verifier; kept for the next call."""
        if self._drafts_for is None or self._drafts_for[0] is not target:
            self._drafts_for = (target, SeparateDrafter(self.draft_model(), target.loop.committed_tokens))
        return self._drafts_for[1]

    def close(self) -> None:
        """Let go of weights and caches; harmless when repeated. The other side of a ``QSPECModel`` goes, too."""
        self._drafts_for = None
        self._engines.close()

    def __enter__(self) -> QuantizedModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @cached_property
    def _forward(self) -> Forward:
        """The model to draft with."""
        if self._engines.config.draft_quantization == self._method:
            return self._engines.drafter.forward
        return self._engines.verifier.forward.for_drafting()

    def _cached_decoder(self, num_blocks: int) -> CachedDecoder:
        """The decoder to score with, over a cache of its own."""
        if self._verifies:
            return self._engines.verifier.cached_decoder(num_blocks)
        return CachedDecoder(
            self._engines.drafter.forward, num_blocks=num_blocks, block_size=self._engines.description.block_size)
