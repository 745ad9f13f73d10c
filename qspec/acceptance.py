"""Which drafted tokens stand: two rules, both of which leave the target distribution exactly as it is.

*Accepted*: a drafted token that is kept. *Recovered*: the token drawn from the residual at the first rejection.
*Bonus*: the extra token after every draft was accepted. Either way a round commits ``accepted + 1`` tokens.

**Rejection** (Leviathan et al. 2023, theorem 1; Chen et al. 2023, section 2): accept with min(1, target/draft), else
draw from the normalised positive part of target - draft. Accept, residual and bonus each have noise of their own,
apart from the draft's.

**Coupled**: the verifier draws its own token by the Gumbel-max trick from the noise that the drafter used at that
position; a draft stands when it equals that draw. The text is by construction what the verifier alone would have
written: it does not depend on the drafter, the draft length or the batch. Greedy decoding is the case without noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from qspec.interfaces import AcceptanceRule, Sampling
from qspec.noise import NoiseKey, Purpose, uniform
from qspec.sampling import draw, token_probs


@dataclass(frozen=True, slots=True)
class Decision:
    """``accepted`` drafts stand; ``next_token`` is the recovered or bonus token."""

    accepted: int
    next_token: int


def acceptance_probability(target: Tensor, draft: Tensor) -> Tensor:
    """min(1, target/draft) per token, 1 where the draft gives nothing. ``[..., vocab]`` float."""
    ratio = target / draft.where(draft > 0, target.new_ones(()))
    return ratio.where(draft > 0, target.new_ones(())).clamp(max=1.0)


def residual_weights(target: Tensor, draft: Tensor) -> Tensor:
    """Positive part of target - draft, not normalised; the target itself where nothing is left. ``[vocab]`` float.

    Nothing is left only when both are equal up to rounding, so that a rejection has probability zero.
    """
    residual = (target - draft).clamp(min=0.0)
    return residual if bool(residual.sum() > 0) else target


def draft_token(logits: Tensor, sampling: Sampling, position: int) -> tuple[int, Tensor]:
    """Draw one draft token; returns it with the distribution it came from. ``logits``: ``[1, vocab]``.

    The token is for ``position``. The distribution is ``[1, vocab]``; the rejection rule needs it, coupling does not.
    """
    probs = token_probs(logits, sampling)
    if sampling.greedy:
        return int(probs.argmax()), probs
    purpose = Purpose.DRAFT if sampling.rule is AcceptanceRule.REJECTION else Purpose.COUPLED
    return draw(probs[0], NoiseKey(sampling.seed, sampling.choice), position, purpose), probs


def decide(
    draft_tokens: Sequence[int], draft_probs: Tensor | None, logits: Tensor, sampling: Sampling, position: int
) -> Decision:
    """Decide on k drafted tokens for ``position``, ``position + 1``, …

    ``logits``: the target's, ``[k + 1, vocab]``. ``draft_probs``: ``[>= k, vocab]``, needed by the rejection rule at
    temperature > 0 only. A drafted token that the target cannot produce is simply rejected.
    """
    if sampling.greedy:
        return decide_greedy(draft_tokens, logits.argmax(-1).tolist())
    target = token_probs(logits, sampling)  # [k + 1, vocab]
    key = NoiseKey(sampling.seed, sampling.choice)
    if sampling.rule is AcceptanceRule.REJECTION:
        return _decide_rejection(draft_tokens, draft_probs, target, key, position)
    return _decide_coupled(draft_tokens, lambda index: draw(target[index], key, position + index, Purpose.COUPLED))


def decide_greedy(draft_tokens: Sequence[int], target_tokens: Sequence[int]) -> Decision:
    """Decide on k drafted tokens by the target's k + 1 most probable tokens."""
    return _decide_coupled(draft_tokens, target_tokens.__getitem__)


def _decide_coupled(draft_tokens: Sequence[int], own_token: Callable[[int], int]) -> Decision:
    """Keep drafts while they equal the verifier's own token; ``own_token(index)`` for index 0..k."""
    for index, drafted in enumerate(draft_tokens):
        own = own_token(index)
        if own != drafted:
            return Decision(index, own)
    return Decision(len(draft_tokens), own_token(len(draft_tokens)))


def _decide_rejection(
    draft_tokens: Sequence[int], draft_probs: Tensor | None, target: Tensor, key: NoiseKey, position: int
) -> Decision:
    """Rejection sampling; ``target``: ``[k + 1, vocab]``, ``draft_probs``: ``[>= k, vocab]``."""
    for index, drafted in enumerate(draft_tokens):
        assert draft_probs is not None, "the rejection rule needs the draft distributions"
        here = position + index
        keep = float(acceptance_probability(target[index, drafted], draft_probs[index, drafted]))
        if float(uniform(key, here, Purpose.ACCEPT, 1)[0]) >= keep:
            left = residual_weights(target[index], draft_probs[index])
            return Decision(index, draw(left, key, here, Purpose.RESIDUAL))
    k = len(draft_tokens)
    return Decision(k, draw(target[k], key, position + k, Purpose.BONUS))
