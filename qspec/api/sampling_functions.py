"""The four functions: one model alone, a small model drafting for a large one, and a model drafting for itself.

All return int64 ``[batch, longest]``: each row's prompt and its new tokens, right-padded with the model's
end-of-sequence token (the smallest of them, 0 if there is none). Shared parameters:

=================  ====================================================================================================
``prefix``         integer ``[batch, length]``, batch ≥ 1. Prompts of different lengths: pad on either side and give
                   ``attention_mask`` (same shape, 0 where padded); the result has the prompts without their padding
``max_len``        most **new** tokens per row, never one more; a row ends earlier with an end-of-sequence token (which
                   is part of it) or where the model's context is full
``gamma``          tokens drafted per round; 0 decodes without drafts
``temperature``    softmax temperature; 0 is greedy
``top_k``          draw from the k most probable tokens; 0 from all
``top_p``          draw from the smallest set of tokens with this probability; 0 and 1 from all
``random_seed``    0 … 2⁶⁴-1: the same text in every call, whatever drafts and ``gamma`` are (row i draws noise i of the
                   seed, so equal prompts in a batch get different texts). None: fresh noise in every call
``verbose``        write the texts to standard output, coloured by what speculation did on a terminal (or with
                   FORCE_COLOR set): accepted drafts green, recovered tokens red, bonus tokens blue
``constraint``     what each new text has to be: ``Constraint(ConstraintKind.JSON_SCHEMA, "{…}")``, or a ``REGEX`` or
                   ``GRAMMAR`` (Lark's EBNF); a text that ends by ``max_len`` may be the beginning of such a text only
=================  ====================================================================================================

The text's law is that of the verifying model alone, and greedy and seeded texts are its very tokens: with a seed, and
when greedy, drafts stand by coupling, otherwise by rejection sampling (``qspec.acceptance``; Leviathan et al. 2023,
algorithm 1). All raise ``InvalidInput`` naming every parameter that cannot be used. A model given by name is loaded
once and kept for later calls (``qspec.api.loaded_models.release_models`` lets go); the generator state of torch is
neither read nor changed.
"""

from __future__ import annotations

import sys

from torch import Tensor

from qspec.api.generation import GeneratedBatch, generate
from qspec.api.loaded_models import loaded_model, loaded_pair
from qspec.api.qspec_model import QSPECModel
from qspec.api.quantized_model import QuantizedModel
from qspec.api.round_colours import show
from qspec.api.text_request import TextRequest
from qspec.constraint import Constraint
from qspec.errors import InvalidInput
from qspec.interfaces import Drafter


def autoregressive_sampling(
    x: Tensor,
    model: QuantizedModel | str,
    N: int,  # noqa: N803  (the name its users know)
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 0.0,
    *,
    random_seed: int | None = None,
    verbose: bool = False,
    attention_mask: Tensor | None = None,
    constraint: Constraint | None = None,
) -> Tensor:
    """Decode ``N`` new tokens per row of ``x`` with one model, one token at a time: int64 ``[batch, longest]``."""
    request = TextRequest(
        max_len=N, temperature=temperature, top_k=top_k, top_p=top_p, random_seed=random_seed, constraint=constraint)
    batch = autoregressive_texts(x, model, request, attention_mask)
    return _output(batch, _quantized(model, "none", "cpu"), verbose)


def speculative_sampling(
    prefix: Tensor,
    approx_model: QuantizedModel | str,
    target_model: QuantizedModel | str,
    max_len: int,
    gamma: int = 4,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 0.0,
    verbose: bool = False,
    random_seed: int | None = None,
    *,
    attention_mask: Tensor | None = None,
    constraint: Constraint | None = None,
) -> Tensor:
    """Decode with ``target_model`` what ``approx_model`` drafts: int64 ``[batch, longest]``.

    The two may be of different families and methods; their vocabularies must number the same tokens alike, else
    ``InvalidInput``. Each has its own weights and its own cache (``qspec.engine.separate_drafter``).
    """
    request = TextRequest(
        max_len=max_len, gamma=gamma, temperature=temperature, top_k=top_k, top_p=top_p, random_seed=random_seed,
        constraint=constraint)
    target = _quantized(target_model, "none", "cpu")
    batch = speculative_texts(prefix, _quantized(approx_model, "none", "cpu"), target, request, attention_mask)
    return _output(batch, target, verbose)


def qspec_sampling(
    prefix: Tensor,
    model: QSPECModel | str,
    draft_quantization: str = "fp8",
    verify_quantization: str = "int8",
    max_len: int = 64,
    gamma: int = 4,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 0.0,
    verbose: bool = False,
    random_seed: int | None = None,
    device: str = "cpu",
    *,
    attention_mask: Tensor | None = None,
    constraint: Constraint | None = None,
) -> Tensor:
    """Decode with a model that drafts for itself under another method: int64 ``[batch, longest]``.

    The two methods and the device are for a model given by name; a ``QSPECModel`` brings its own. ``auto`` is the
    method that pays on this machine.
    """
    request = TextRequest(
        max_len=max_len, gamma=gamma, temperature=temperature, top_k=top_k, top_p=top_p, random_seed=random_seed,
        constraint=constraint)
    if isinstance(model, str):
        model = loaded_pair(model, draft_quantization, verify_quantization, device, gamma)
    return _output(speculative_texts(prefix, model.draft, model.verify, request, attention_mask), model.verify, verbose)


def qspec_sampling_different_models(
    prefix: Tensor,
    draft: QuantizedModel | str,
    verify: QuantizedModel | str,
    draft_quantization: str = "fp8",
    verify_quantization: str = "int8",
    max_len: int = 64,
    gamma: int = 4,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 0.0,
    verbose: bool = False,
    random_seed: int | None = None,
    device: str = "cpu",
    *,
    attention_mask: Tensor | None = None,
    constraint: Constraint | None = None,
) -> Tensor:
    """Decode with the model ``verify`` what another, quantised model drafts: int64 ``[batch, longest]``.

    As ``speculative_sampling``, with methods for the models that are given by name.
    """
    request = TextRequest(
        max_len=max_len, gamma=gamma, temperature=temperature, top_k=top_k, top_p=top_p, random_seed=random_seed,
        constraint=constraint)
    drafting = _quantized(draft, draft_quantization, device)
    verifying = _quantized(verify, verify_quantization, device)
    return _output(speculative_texts(prefix, drafting, verifying, request, attention_mask), verifying, verbose)


def autoregressive_texts(
    prefix: Tensor, model: QuantizedModel | str, request: TextRequest, attention_mask: Tensor | None = None
) -> GeneratedBatch:
    """``autoregressive_sampling`` with everything that is known about the texts."""
    model = _verifying(_quantized(model, "none", "cpu"), "model")
    return generate(model.engines, None, prefix, request, attention_mask)


def speculative_texts(
    prefix: Tensor, draft: QuantizedModel, verify: QuantizedModel, request: TextRequest,
    attention_mask: Tensor | None = None,
) -> GeneratedBatch:
    """The other three with everything that is known about the texts. Two sides of one model share its cache."""
    engines = _verifying(verify, "target_model").engines
    drafter: Drafter | None = None
    if request.gamma > 0:
        own = draft.engines is engines and engines.config.draft_quantization == draft.quantization_method
        drafter = engines.drafter if own else draft.drafter_for(engines)
    return generate(engines, drafter, prefix, request, attention_mask)


def _quantized(model: QuantizedModel | str, method: str, device: str) -> QuantizedModel:
    return loaded_model(model, method, device) if isinstance(model, str) else model


def _verifying(model: QuantizedModel, field: str) -> QuantizedModel:
    """The model, if it can decide on tokens."""
    if not model.verifies:
        raise InvalidInput.field(
            field, f"{model} only drafts; give the verifying side of its pair, or a model under a method that verifies")
    return model


def _output(batch: GeneratedBatch, model: QuantizedModel, verbose: bool) -> Tensor:
    if verbose:
        show(batch.texts, model.tokenizer, sys.stdout)
    return batch.output_ids
