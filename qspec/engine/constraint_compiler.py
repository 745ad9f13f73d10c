"""Compiles the constraints of a verifier's tenancies in a helper thread, beside its rounds.

Compiling may take a second, and reading the vocabulary does, once. A round that waited for either would hold up every
sequence in it; instead a sequence is not decided on until its constraint is there, and the others go on. The helper
never calls torch, whose threads are the engine's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from qspec.constraint import Constraint
from qspec.engine.slots import Tenancy
from qspec.errors import InvalidInput
from qspec.grammar import Grammars
from qspec.grammar_matcher import GrammarMatcher


class ConstraintCompiler:
    """``prepare`` and ``begin`` return at once; one thread does the work in order, which ends with ``close``."""

    def __init__(self, grammars: Grammars) -> None:
        self._grammars = grammars
        self._helper = ThreadPoolExecutor(max_workers=1, thread_name_prefix="constraints")

    def prepare(self) -> Future[None]:
        """Read the vocabulary, so that the first constraint need not wait for that."""
        return self._helper.submit(self._grammars.prepare)

    def begin(self, tenancies: Iterable[Tenancy | None]) -> None:
        """Compile the constraints of those that are new."""
        for tenancy in tenancies:
            if tenancy is not None and tenancy.constraint is not None and tenancy.compilation is None:
                tenancy.compilation = self._helper.submit(self._matcher, tenancy.constraint)

    def close(self) -> None:
        """Drop what was not begun; does not wait."""
        self._helper.shutdown(wait=False, cancel_futures=True)

    def _matcher(self, constraint: Constraint) -> GrammarMatcher | None:
        """A matcher for one text; None for what cannot be followed, which admission refuses already."""
        with contextlib.suppress(InvalidInput):
            return self._grammars.matcher(constraint)
        return None
