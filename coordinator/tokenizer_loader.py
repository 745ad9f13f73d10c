"""The tokenizer, and what constraints need of it: read beside the start of the workers.

Reading takes a second or two, most of it under the interpreter's lock, for which streams would wait later on. The
workers take longer to load, and the coordinator has nothing else to do meanwhile. Where the model is on this machine
and was converted before, as at every start but the first, it begins at once; otherwise when the first verifier has
brought it.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future

from qspec.grammar import Grammars
from qspec.models.converted import cached_tokenizer, prepare_tokenizer
from qspec.models.tokenizer import Tokenizer


class TokenizerLoader:
    """Begins when it is made."""

    def __init__(self, model: str) -> None:
        """``model``: as the user names it."""
        self._model = model
        self._converted = threading.Event()
        self._loaded: Future[tuple[Tokenizer, Grammars]] = Future()
        threading.Thread(target=self._work, name="tokenizer", daemon=True).start()

    def wait(self) -> tuple[Tokenizer, Grammars]:
        """The model's tokenizer and its checker of constraints, once the model is there. ``ModelError``."""
        self._converted.set()
        return self._loaded.result()

    def _work(self) -> None:
        try:
            directory = cached_tokenizer(self._model)
            if directory is None:
                self._converted.wait()
                directory = prepare_tokenizer(self._model)
            tokenizer = Tokenizer.load(directory)
            tokenizer.prepare()
            constraints = Grammars(lambda: tokenizer, vocab_size=tokenizer.vocab_size)
            constraints.prepare()
            self._loaded.set_result((tokenizer, constraints))
        except BaseException as error:  # noqa: BLE001  raised for whoever waits
            self._loaded.set_exception(error)
