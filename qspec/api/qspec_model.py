"""One model twice: quantised to draft, and in the precision that decides."""

from __future__ import annotations

import logging
from types import TracebackType

import torch

from qspec.api.auto_pair import auto_pair
from qspec.api.engines import Engines
from qspec.api.method_choice import backend_of, check_pair, computes_alike, describe_gain
from qspec.api.quantized_model import DEFAULT_KV_TOKENS, DEFAULT_MAX_DRAFT_LENGTH, QuantizedModel
from qspec.api.step_costs import measure_costs
from qspec.config import DEFAULT_MODEL, StackConfig
from qspec.errors import InvalidInput
from qspec.pair_gain import predict_gain
from qspec.quant.method_plan import check_methods
from qspec.quant.methods import AUTO, NO_DRAFTER, Role

_log = logging.getLogger("qspec")


class QSPECModel:
    """A model with its drafter and its verifier over one copy of the weights that they share, and one KV cache.

    Parameters and errors as of ``QuantizedModel``, with one method for each side; ``auto`` is the one that pays on this
    machine. Without arguments: ``smollm2``, ``fp8`` drafting for ``int8``. ``draft_overrides`` and ``verify_overrides``
    give single linear layers another method: ``GLOB=METHOD,…``, the last match wins (``qspec.quant.overrides``).
    ``draft`` and ``verify`` are both sides as ``QuantizedModel``. Of a pair that is not the one that pays, a few steps
    are timed (two seconds, longer where single steps take longer), and one line says what it will gain and which pair
    gains more (logger ``qspec``). Source: Zhao et al., "QSpec: Speculative Decoding with Complementary Quantization
    Schemes", EMNLP 2025.
    """

    def __init__(
        self,
        name: str = DEFAULT_MODEL,
        draft_quantization: str = "fp8",
        verify_quantization: str = "int8",
        device: str | torch.device = "cpu",
        *,
        draft_overrides: str = "",
        verify_overrides: str = "",
        kv_tokens: int = DEFAULT_KV_TOKENS,
        max_draft_length: int = DEFAULT_MAX_DRAFT_LENGTH,
    ) -> None:
        backend = backend_of(str(device))
        draft, verify = str(draft_quantization), str(verify_quantization)
        check_pair(draft, verify, backend)
        if draft == NO_DRAFTER:
            raise InvalidInput.field(
                "draft_quantization", "'off' leaves nothing to draft with; use QuantizedModel to decode without drafts")
        config = StackConfig(
            model=name, draft_quantization=draft, verify_quantization=verify, draft_overrides=draft_overrides,
            verify_overrides=verify_overrides, kv_tokens=kv_tokens, max_draft_length=max_draft_length,
            device="cpu",
        )
        for role in Role:
            check_methods(config, role, backend)  # before anything is loaded
        self._engines = Engines(config, drafting=True)
        draft, verify = self._engines.config.draft_quantization, self._engines.config.verify_quantization
        self.draft = QuantizedModel.view(self._engines, draft, verifies=False)
        self.verify = QuantizedModel.view(self._engines, verify, verifies=True)
        if (draft_quantization, verify_quantization) == (AUTO, AUTO):
            return
        best = auto_pair(name, AUTO, AUTO, str(device))
        if not computes_alike((draft, verify), best, backend):
            line = describe_gain(draft, verify, backend, best, predict_gain(measure_costs(self._engines)))
            _log.warning("%s", line)

    @property
    def name(self) -> str:
        """The model, as it was named."""
        return self._engines.config.model

    def __repr__(self) -> str:
        config = self._engines.config
        return f"QSPECModel({self.name!r}, {config.draft_quantization!r}, {config.verify_quantization!r})"

    def close(self) -> None:
        """Let go of weights and cache; harmless when repeated."""
        self._engines.close()

    def __enter__(self) -> QSPECModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
