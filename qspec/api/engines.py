"""One model loaded in this process: a verifier, the drafter over its arena, and the loop that uses them."""

from __future__ import annotations

import itertools
from functools import cached_property

from qspec.config import StackConfig
from qspec.engine.drafter import LocalDrafter
from qspec.engine.verifier import LocalVerifier
from qspec.errors import QspecError
from qspec.grammar import Grammars
from qspec.interfaces import Drafter, unwatched
from qspec.models.converted import prepare_tokenizer
from qspec.models.tokenizer import Tokenizer
from qspec.speculation import SpeculationLoop

_epochs = itertools.count(1)


class Engines:
    """What ``QuantizedModel`` and ``QSPECModel`` are views of. The drafter is loaded with the rest if ``drafting``,
    else when it is first needed.
    """

    def __init__(self, config: StackConfig, *, drafting: bool) -> None:
        self._verifier: LocalVerifier | None = LocalVerifier.load(config, progress=unwatched, epoch=next(_epochs))
        self.config = self._verifier.config
        self.loop = SpeculationLoop()
        self.description = self.loop.attach_verifier(self._verifier)
        self._attached: Drafter | None = None
        if drafting:
            self.use_drafter(self.drafter)

    @property
    def verifier(self) -> LocalVerifier:
        """The verifier; ``QspecError`` after ``close``."""
        if self._verifier is None:
            raise QspecError(f"{self.config.model} was closed; make the model anew")
        return self._verifier

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return Tokenizer.load(prepare_tokenizer(self.config.model))

    @cached_property
    def grammars(self) -> Grammars:
        """Says whether texts can be held to a constraint."""
        return Grammars(lambda: self.tokenizer, vocab_size=self.description.vocab_size)

    @cached_property
    def drafter(self) -> LocalDrafter:
        """The drafter over the verifier's arena. ``InvalidInput`` when the configuration has none."""
        drafter = LocalDrafter.load(self.config, progress=unwatched)
        drafter.attach(self.verifier.describe())
        return drafter

    def use_drafter(self, drafter: Drafter | None) -> None:
        """Let the loop draft with ``drafter`` from now on (None: whatever it has, it will not be asked)."""
        if drafter is not None and (drafter is not self._attached or not self.loop.drafter_attached):
            self.loop.attach_drafter(drafter)
            self._attached = drafter

    def close(self) -> None:
        """Let go of weights and cache; harmless when repeated."""
        if self._verifier is not None:
            if "drafter" in self.__dict__:
                self.drafter.close()
                del self.drafter
            if self._attached is not None:
                self._attached.close()
            self._verifier.close()
            self._verifier, self._attached = None, None
