"""How one sequence draws its tokens: everything that a request may ask for, resolved. No tensors, no torch.

What is done with it: ``qspec.logit_adjustment`` (penalties, bias, bans), ``qspec.filters`` (temperature, top-k, …) and
``qspec.acceptance`` (the rule). Drafter and verifier get the same options and apply them alike, row by row.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

MIN_TEMPERATURE = 1e-3
"""Smallest temperature above 0: below it, logits divided by it leave the range of fp32."""
MAX_TEMPERATURE = 1e6
"""Largest one: all tokens are as good as equally probable long before. What fp32 takes for infinite would make a token
that is excluded (a logit of minus infinity) as probable as the others."""


def temperature_problem(temperature: float) -> str | None:
    """What is wrong with a temperature, if anything."""
    if temperature == 0 or MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:  # false for NaN
        return None
    return f"must be 0 (greedy) or from {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}, got {temperature:g}"


class AcceptanceRule(Enum):
    """How drafted tokens are decided on; both rules are exact (``qspec.acceptance``)."""

    REJECTION = "rejection"
    COUPLED = "coupled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How one sequence draws its tokens."""

    temperature: float = 0.0
    """Softmax temperature; 0 is greedy."""
    top_k: int = 0
    """Keep the k most probable tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of tokens whose probability reaches this; 1 keeps all."""
    min_p: float = 0.0
    """Keep tokens at least this probable, as a share of the most probable one's; 0 keeps all."""
    typical_p: float = 1.0
    """Keep the most typical tokens whose probability reaches this; 1 keeps all."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens in prompt and text; 1 leaves them."""
    presence_penalty: float = 0.0
    """Is subtracted from the logits of tokens that were generated."""
    frequency_penalty: float = 0.0
    """Is subtracted from a token's logit as often as it was generated."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Token ids, ascending, and what is added to their logits."""
    min_tokens: int = 0
    """Tokens to generate before one of ``ending_token_ids`` may come."""
    ending_token_ids: tuple[int, ...] = ()
    """Tokens that end the text."""
    logprobs: int | None = None
    """Most probable tokens to tell with each token's log-probability; None tells nothing."""
    prompt_logprobs: int | None = None
    """The same for the tokens of the prompt."""
    seed: int = 0
    """Key of the counter-based noise, 64 bits."""
    choice: int = 0
    """Which of several outputs of one request this is, 16 bits."""
    rule: AcceptanceRule = AcceptanceRule.COUPLED
    """The acceptance rule; greedy decoding is the same under both."""

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is taken."""
        return self.temperature == 0.0

    @property
    def penalises(self) -> bool:
        """Whether logits depend on which tokens came before."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    @property
    def adjusts_logits(self) -> bool:
        """Whether tokens come from other logits than the model's."""
        return self.penalises or bool(self.logit_bias) or (self.min_tokens > 0 and bool(self.ending_token_ids))

    @property
    def takes_argmax(self) -> bool:
        """Whether a token is the model's most probable one, so that whoever draws it needs no logits."""
        return self.greedy and not self.adjusts_logits

    @property
    def plain_greedy(self) -> bool:
        """Whether nothing is asked for but the model's most probable tokens: the verifier needs no logits."""
        return self.takes_argmax and self.logprobs is None

    @property
    def needs_draft_probs(self) -> bool:
        """Whether the verifier needs the draft distributions: only when rejecting at temperature > 0."""
        return not self.greedy and self.rule is AcceptanceRule.REJECTION
