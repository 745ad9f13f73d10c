"""The report for people: plain text, one line per configuration, then the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.report import Verdict

_HEADINGS = (
    "configuration", "tok/s", "[quartiles]", "total", "end to end", "/ plain [95 %]", "/ transformers [95 %]",
    "accepted", "tok/round", "c", "v", "predicted", "measured", "RPC",
)
_MIB = 1 << 20


def render(result: Mapping[str, Any], verdicts: Sequence[Verdict]) -> str:
    """The whole report."""
    return "\n".join([*_environment(result["environment"], result["settings"]), "",
                      *_align([_HEADINGS, *map(_row, result["configurations"].items())]), "",
                      *_positions(result["configurations"]), "", *_texts(result), *_llama_cpp(result["llama_cpp"]), "",
                      *_memory(result["memory"]), "",
                      _first_token(result["first_token"]), "", *map(_verdict, verdicts)])


def _environment(environment: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[str]:
    memory = environment["memory_bytes"]
    size = "unknown" if memory is None else f"{memory / (1 << 30):.1f} GiB"
    commit = environment["commit"] or "no commit"
    modified = ", modified" if environment["modified"] else ""
    yield (f"{environment['date']}  {environment['cpu']}, {environment['cores_usable']} cores usable, {size}, load "
           f"{environment['load_average'][0]:.2f} at the start")
    libraries = ", ".join(f"{name} {environment[name]}" for name in ("torch", "transformers", "grpcio", "protobuf"))
    yield f"Python {environment['python']}, {libraries}; commit {commit}{modified}"
    yield (f"{settings['model']}, verifier {settings['verify_method']}, drafter {settings['draft_method']}, "
           f"{settings['threads']} threads, 1 stream, greedy, {settings['max_tokens']} tokens, "
           f"{settings['num_prompts']} prompts of {settings['prompts']} cut to {settings['prompt_tokens']} tokens")
    yield "tok/s: tokens after the first, over the time since; median over prompts. Ratios: median of those per prompt."
    yield "c: draft step, v: verify pass, in plain verify steps; predicted: E / (k c + v); measured: over all prompts."


def _row(item: tuple[str, Mapping[str, Any]]) -> tuple[str, ...]:
    name, figures = item
    decode = figures["decode_tokens_per_s"]
    prediction = figures.get("prediction") or {}
    drafted = figures.get("drafted")
    return (
        name,
        f"{decode['median']:.1f}",
        f"[{decode['lower_quartile']:.1f}, {decode['upper_quartile']:.1f}]",
        f"{decode['total']:.1f}",
        f"{figures['end_to_end_tokens_per_s']['total']:.1f}",
        _interval(figures["ratio_to_plain"]),
        _interval(figures.get("ratio_to_transformers")),
        f"{figures['accepted'] / drafted:.1%}" if drafted else "-",
        _number(figures.get("tokens_per_round")),
        _number(prediction.get("c")),
        _number(prediction.get("v")),
        _number(prediction.get("speed_up")),
        _number(figures.get("measured_speed_up")),
        "-" if figures.get("rpc_share_of_decoding") is None else f"{figures['rpc_share_of_decoding']:.1%}",
    )


def _positions(configurations: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield "accepted / drafted by position in the draft:"
    for name, figures in configurations.items():
        if figures.get("drafted"):
            pairs = zip(figures["accepted_per_position"], figures["drafted_per_position"], strict=True)
            yield f"  {name}: " + "  ".join(f"{accepted}/{drafted}" for accepted, drafted in pairs)


def _texts(result: Mapping[str, Any]) -> Iterator[str]:
    differing = {name: found for name, found in result["differing_prompts"].items() if found}
    yield f"texts that differ from plain decoding: {differing or 'none'}"
    agreement = result["transformers"]
    if agreement is None:
        yield "transformers: SKIPPED (--skip-transformers); neither its speed nor its texts were compared"
        return
    yield f"texts equal to transformers': {agreement['equal']} of {agreement['prompts']}"
    for difference in agreement["differences"]:
        yield (f"  prompt {difference['prompt']}: first difference at token {difference['position']}, where the best "
               f"two logits of transformers differ by {difference['logit_gap']:.2g}")


def _llama_cpp(found: Mapping[str, Any] | None) -> Iterator[str]:
    if found is None:
        yield "llama.cpp: not compared (--llama-cpp compares)"
        return
    yield f"llama.cpp: llama-cpp-python {found['version']}, {found['system']}"
    ours = found["stack_memory"]
    for encoding, figures in found["encodings"].items():
        agreement, memory, ratio = figures["agreement"], figures["memory"], figures["stack_memory_ratio"]
        places = ", ".join(f"prompt {entry['prompt']} at token {entry['position']}"
                           for entry in agreement["differences"])
        yield (f"  {encoding}: texts equal to plain decoding's: {agreement['equal']} of {agreement['prompts']}"
               f"{f' (first differences: {places})' if places else ''}, {agreement['tokens_before_differences']} of "
               f"{agreement['tokens']} tokens before a difference")
        yield (f"  {encoding}: memory of the stack against its: PSS {ours['proportional'] / _MIB:.1f} to "
               f"{memory['proportional'] / _MIB:.1f} MiB ({ratio['proportional']:.2f}x), RSS "
               f"{ours['resident'] / _MIB:.1f} to {memory['resident'] / _MIB:.1f} MiB ({ratio['resident']:.2f}x)")


def _memory(memory: Mapping[str, Any]) -> Iterator[str]:
    yield "memory of the stack in MiB (PSS: pages that processes share count once in the sum):"
    for process in memory["processes"]:
        shares = f"RSS {process['resident'] / _MIB:.1f}, private {process['private'] / _MIB:.1f}"
        yield f"  {process['program']:<14} {process['proportional'] / _MIB:8.1f}   ({shares})"

    yield f"  {'sum':<14} {memory['resident'] / _MIB:8.1f}"
    yield "budget that the stack states, in MiB:"
    for line in memory["budget"]:
        yield f"  {line['bytes'] / _MIB:8.1f}  {line['owner']}: {line['name']}"
    yield f"  {memory['budgeted'] / _MIB:8.1f}  sum; resident less this: {memory['resident_beyond_budget'] / _MIB:.1f}"


def _first_token(first_token: Mapping[str, Any]) -> str:
    runs = ", ".join(f"{run['first_text_s']:.1f}" for run in first_token["runs"])
    ends = ", ".join(f"{run['command_s']:.1f}" for run in first_token["runs"])
    return f"from the command to its first text, warm cache: {runs} s; to the command's end: {ends} s"


def _verdict(verdict: Verdict) -> str:
    word = {True: "met", False: "MISSED", None: "not measured"}[verdict.met]
    return f"{word}: {verdict.target}: {verdict.measured}"


def _align(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns of equal width, the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        yield "  ".join(cells).rstrip()


def _interval(ratio: Mapping[str, float] | None) -> str:
    return "-" if ratio is None else f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def _number(number: float | None) -> str:
    return "-" if number is None else f"{number:.2f}"
