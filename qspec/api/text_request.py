"""What a caller wants, checked once: how tokens are drawn, how many, and from which noise."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from qspec.constraint import MAX_CONSTRAINT_BYTES, Constraint
from qspec.errors import FieldViolation, InvalidInput
from qspec.interfaces import AcceptanceRule, Sampling
from qspec.sampling_options import temperature_problem


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRequest:
    """How every row of a batch is to be continued. ``InvalidInput`` names each field that cannot be used."""

    max_len: int
    """Most new tokens per row, at least 1."""
    temperature: float = 1.0
    """Softmax temperature; 0 is greedy."""
    top_k: int = 0
    """Draw from the k most probable tokens; 0 from all."""
    top_p: float = 0.0
    """Draw from the smallest set of tokens with this probability; 0 and 1 mean all."""
    random_seed: int | None = None
    """Reproducible texts, by coupled acceptance; None takes fresh noise, and rejection sampling. 0 is a seed."""
    gamma: int = 0
    """Tokens drafted per round; 0 drafts none."""
    constraint: Constraint | None = None
    """What each text has to be; it ends by an end-of-sequence token where the constraint can end."""

    def __post_init__(self) -> None:
        seed = self.random_seed
        problems = {
            "max_len": self.max_len < 1 and f"must be at least 1, got {self.max_len}",
            "temperature": temperature_problem(self.temperature),
            "top_k": self.top_k < 0 and f"must be at least 0 (0 keeps all), got {self.top_k}",
            "top_p": not 0 <= self.top_p <= 1 and f"must be in 0..1 (0 and 1 keep all), got {self.top_p:g}",
            "random_seed": seed is not None and not 0 <= seed < 1 << 64 and f"must be in 0..2^64-1, got {seed}",
            "constraint": self.constraint is not None and self.constraint.size > MAX_CONSTRAINT_BYTES and (
                f"at most {MAX_CONSTRAINT_BYTES} bytes, got {self.constraint.size}"),
            "gamma": self.gamma < 0 and f"must be at least 0 (0 drafts none), got {self.gamma}",
        }
        if violations := [FieldViolation(name, str(problem)) for name, problem in problems.items() if problem]:
            raise InvalidInput(*violations)

    def samplings(self, rows: int) -> list[Sampling]:
        """How each row draws: one seed for the call, and the row's number as choice, so that equal prompts differ."""
        seeded = self.random_seed is not None
        seed = self.random_seed if self.random_seed is not None else secrets.randbits(64)
        rule = AcceptanceRule.COUPLED if seeded or self.temperature == 0 else AcceptanceRule.REJECTION
        return [
            Sampling(
                temperature=float(self.temperature), top_k=self.top_k, top_p=self.top_p or 1.0, seed=seed, choice=row,
                rule=rule,
            )
            for row in range(rows)
        ]
