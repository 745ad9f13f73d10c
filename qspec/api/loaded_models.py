"""Models that the functions loaded because they were given a name: kept, so that the next call finds them loaded."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Protocol, TypeVar, cast

from qspec.api.method_choice import backend_of, check_method, check_pair
from qspec.api.qspec_model import QSPECModel
from qspec.api.quantized_model import DEFAULT_MAX_DRAFT_LENGTH, QuantizedModel

MOST_MODELS = 4
"""Models kept at once; the one that was not used for longest makes room."""


class _Closable(Protocol):
    def close(self) -> None:
        """Let go of everything."""
        ...


_Model = TypeVar("_Model", bound=_Closable)
_loaded: OrderedDict[Hashable, _Closable] = OrderedDict()


def loaded_model(name: str, method: str, device: str) -> QuantizedModel:
    """The model ``name`` under ``method``, loaded once. Raises as ``QuantizedModel``."""
    method = check_method(method, backend_of(device))
    return _kept((name, method, device), lambda: QuantizedModel(name, method, device))


def loaded_pair(name: str, draft: str, verify: str, device: str, gamma: int) -> QSPECModel:
    """The model ``name`` under a pair of methods, loaded once (again for a larger ``gamma``). Raises as ``QSPECModel``.
    """
    check_pair(draft, verify, backend_of(device))
    most = max(gamma, DEFAULT_MAX_DRAFT_LENGTH)
    return _kept(
        (name, str(draft), str(verify), device, most),
        lambda: QSPECModel(name, draft, verify, device, max_draft_length=most),
    )


def release_models() -> None:
    """Let go of all models that were loaded by name."""
    while _loaded:
        _loaded.popitem()[1].close()


def _kept(key: Hashable, load: Callable[[], _Model]) -> _Model:
    if key not in _loaded:
        while len(_loaded) >= MOST_MODELS:
            _loaded.popitem(last=False)[1].close()
        _loaded[key] = load()
    _loaded.move_to_end(key)
    return cast(_Model, _loaded[key])

