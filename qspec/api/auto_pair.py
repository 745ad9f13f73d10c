"""The names of the pair that ``auto`` means for a model, before it is loaded."""

from __future__ import annotations

from qspec.api.method_choice import backend_of, check_pair
from qspec.config import StackConfig
from qspec.engine.auto_methods import resolve_methods
from qspec.engine.backend import choose_backend
from qspec.interfaces import unwatched
from qspec.models.converted import prepare


def auto_pair(name: str, draft: str, verify: str, device: str = "cpu") -> tuple[str, str]:
    """Plain names for two methods, either of which may be ``auto``, for drafting and verifying with the model ``name``.

    Converts the model if need be, and times steps once per machine. ``InvalidInput`` names each method that is not
    there, ``ModelError`` a model that cannot be found or read.
    """
    check_pair(draft, verify, backend_of(device))
    config = StackConfig(model=name, draft_quantization=str(draft), verify_quantization=str(verify), device="cpu")
    model = prepare(name, progress=unwatched)
    config, _ = resolve_methods(config, model, choose_backend(config, model.config, unwatched), unwatched)
    return config.draft_quantization, config.verify_quantization
