"""Decodes a prompt with the verifying model alone, then with drafts: ``python qspec_example.py --same_model -v``."""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from qspec.api.method_choice import check_pair
from qspec.api.script_options import add_script_arguments, model_choice
from qspec.cli import run_program
from qspec.config import StackConfig
from qspec.errors import InvalidInput
from qspec.quant.methods import Backend

if TYPE_CHECKING:
    from torch import Tensor

    from qspec import QuantizedModel

DEFAULT_INPUT = "The quick brown fox jumps over the lazy dog, and"


def main() -> int:
    """Decode and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_script_arguments(parser)
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help=(
        "softmax temperature, 0 is greedy (default: %(default)s)"))
    args = parser.parse_args()
    choice = model_choice(args)
    check_pair(args.draft_quantization, args.verify_quantization, Backend.CPU)

    import torch  # after the options were read: it takes seconds

    from qspec import QSPECModel, QuantizedModel, autoregressive_sampling, qspec_sampling, speculative_sampling
    from qspec.api.auto_pair import auto_pair

    print(f"loading {choice.verify}" if choice.same else f"loading {choice.draft} and {choice.verify}", flush=True)
    draft_method, verify_method = auto_pair(choice.verify, args.draft_quantization, args.verify_quantization)
    limits = {"max_draft_length": max(args.gamma, StackConfig().max_draft_length)}
    sample: Callable[..., Tensor]
    if choice.same:
        model = QSPECModel(choice.verify, draft_method, verify_method, **limits)
        draft, verify = model.draft, model.verify
        sample = functools.partial(qspec_sampling, model=model)
    else:
        draft = QuantizedModel(choice.draft, draft_method)
        verify = QuantizedModel(choice.verify, verify_method, **limits)
        sample = functools.partial(speculative_sampling, approx_model=draft, target_model=verify)

    tokens = verify.tokenizer.encode(DEFAULT_INPUT if args.input is None else args.input)
    if not tokens:
        raise InvalidInput.field("--input", "has no tokens; give a text")
    prefix = torch.tensor([tokens])
    how = {"temperature": args.temperature, "random_seed": args.seed, "verbose": args.verbose}
    alone = functools.partial(autoregressive_sampling, prefix, verify, args.max_tokens, **how)
    drafted = functools.partial(sample, prefix, max_len=args.max_tokens, gamma=args.gamma, **how)
    title = f"{verify.name} ({verify.quantization_method})"
    show(f"{title} alone", alone, verify, len(tokens), args.verbose)
    drafting = f"{draft.name} ({draft.quantization_method})"
    show(f"{title} with drafts of {drafting}", drafted, verify, len(tokens), args.verbose)
    return 0


def show(title: str, decode: Callable[[], Tensor], model: QuantizedModel, prompt_len: int, shown: bool) -> None:
    """Decode once and print the text, unless decoding has ``shown`` it, with its speed (prefill included)."""
    print(f"\n{title}", flush=True)
    started = time.perf_counter()
    new = decode()[0, prompt_len:].tolist()
    seconds = time.perf_counter() - started
    if not shown:
        print(model.tokenizer.decode(new))
    print(f"{len(new)} tokens, {len(new) / seconds:.1f} tokens/s", flush=True)


if __name__ == "__main__":
    run_program(main)
