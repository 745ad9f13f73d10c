"""How a sequence draws its tokens, as a message; see ``qspec.rpc.codec``."""

from __future__ import annotations

import math

from qspec.rpc.codec import member, require
from qspec.sampling_options import AcceptanceRule, Sampling, temperature_problem
from qspec.v1 import types_pb2

_RULES = {
    AcceptanceRule.REJECTION: types_pb2.ACCEPTANCE_RULE_REJECTION,
    AcceptanceRule.COUPLED: types_pb2.ACCEPTANCE_RULE_COUPLED,
}
_RULES_BACK = {value: rule for rule, value in _RULES.items()}
_MAX_CHOICE = 2**16 - 1
_MAX_UINT32 = 2**32 - 1


def sampling_to_pb(sampling: Sampling) -> types_pb2.Sampling:
    """Encode."""
    _check_sampling(sampling)
    return types_pb2.Sampling(
        temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p, min_p=sampling.min_p,
        typical_p=sampling.typical_p, seed=sampling.seed, choice=sampling.choice, rule=_RULES[sampling.rule],
        repetition_penalty=sampling.repetition_penalty, presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty, logit_bias=dict(sampling.logit_bias),
        min_tokens=sampling.min_tokens, ending_token_ids=sampling.ending_token_ids,
        logprobs=sampling.logprobs, prompt_logprobs=sampling.prompt_logprobs,
    )


def sampling_from_pb(message: types_pb2.Sampling) -> Sampling:
    """Decode; a message that was not sent at all fails for its unset rule."""
    sampling = Sampling(
        temperature=message.temperature, top_k=message.top_k, top_p=message.top_p, min_p=message.min_p,
        typical_p=message.typical_p, seed=message.seed, choice=message.choice,
        rule=member(_RULES_BACK, message.rule, "acceptance rule"), repetition_penalty=message.repetition_penalty,
        presence_penalty=message.presence_penalty, frequency_penalty=message.frequency_penalty,
        logit_bias=tuple(sorted(message.logit_bias.items())), min_tokens=message.min_tokens,
        ending_token_ids=tuple(message.ending_token_ids),
        logprobs=message.logprobs if message.HasField("logprobs") else None,
        prompt_logprobs=message.prompt_logprobs if message.HasField("prompt_logprobs") else None,
    )
    _check_sampling(sampling)
    return sampling


def _check_sampling(sampling: Sampling) -> None:
    problem = temperature_problem(sampling.temperature)
    require(problem is None, f"temperature {problem}")
    require(0 < sampling.top_p <= 1, f"top_p must be in (0, 1]: {sampling.top_p}")
    require(0 <= sampling.top_k <= _MAX_UINT32, f"top_k must be a 32-bit number >= 0: {sampling.top_k}")
    require(0 <= sampling.min_p <= 1, f"min_p must be in [0, 1]: {sampling.min_p}")
    require(0 < sampling.typical_p <= 1, f"typical_p must be in (0, 1]: {sampling.typical_p}")
    require(
        math.isfinite(sampling.repetition_penalty) and sampling.repetition_penalty > 0,
        f"repetition_penalty must be finite and > 0: {sampling.repetition_penalty}")
    added = (sampling.presence_penalty, sampling.frequency_penalty, *(bias for _, bias in sampling.logit_bias))
    require(all(map(math.isfinite, added)), "penalties and biases must be finite")
    biased = [token for token, _ in sampling.logit_bias]
    require(biased == sorted(set(biased)), "biased tokens must be different and ascending")
    require(
        all(0 <= number <= _MAX_UINT32 for number in (*biased, *sampling.ending_token_ids, sampling.min_tokens)),
        "token ids and min_tokens are 32-bit numbers >= 0")
    told = [number for number in (sampling.logprobs, sampling.prompt_logprobs) if number is not None]
    require(all(0 <= number <= _MAX_UINT32 for number in told), "numbers of log-probabilities have 32 bits")
    require(0 <= sampling.choice <= _MAX_CHOICE, f"choice has 16 bits: {sampling.choice}")
