"""What calibration wins: models that ``python -m qspec quantize`` made, beside the same formats rounded to nearest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.method_figures import Answer, answer_logits, loss_of_text
from qspec.errors import InvalidInput
from qspec.evaluation.agreement import Agreement, TextLoss, compare_logits
from qspec.evaluation.scoring import ScoredModel
from qspec.interfaces import Progress
from qspec.models.converted import prepare
from qspec.models.resolve import CONVERTED_FILE
from qspec.quant.methods import Backend, Choice, choose_verify

ROUNDED = "rounded to nearest"


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibratedFigures:
    """Codes of one format, chosen in one way."""

    choice: Choice
    chosen_by: str
    """``ROUNDED``, or the algorithm."""
    loss: TextLoss
    against_fp32: Agreement


def measure_calibrated(
    original: ScoredModel, directories: Sequence[Path], answers: Sequence[Answer], text: Sequence[Sequence[int]],
    progress: Progress,
) -> list[CalibratedFigures]:
    """Figures of every calibrated model in ``directories``, each format's rounded codes before its first.

    ``InvalidInput`` for a directory that no calibration made, or made of another model's architecture.
    """
    longest = max(*(len(answer.prompt) + len(answer.token_ids) for answer in answers), *map(len, text))

    def figures(model: ScoredModel, choice: Choice, chosen_by: str) -> CalibratedFigures:
        decoder = model.decoder(model.layers(model.uniform(choice)), longest)
        agreement = compare_logits(answer_logits(decoder, answers), targets)
        return CalibratedFigures(choice=choice, chosen_by=chosen_by, loss=loss_of_text(decoder, text),
                                 against_fp32=agreement)

    fp32 = original.decoder(original.layers(original.uniform(choose_verify("none", Backend.CPU))), longest)
    targets = answer_logits(fp32, answers)
    found: list[CalibratedFigures] = []
    for index, directory in enumerate(directories):
        progress(f"calibrated: {directory.name}", index / len(directories))
        made = prepare(str(directory), progress=lambda _text, _share: None)
        if made.config != original.model.config or not made.stored:
            raise InvalidInput.field("--calibrated", f"{directory} is no quantised form of this model")
        choice = choose_verify("int4", Backend.CPU, stored=made.stored)
        if choice not in [each.choice for each in found]:
            found.append(figures(original, choice, ROUNDED))
        algorithm = json.loads((made.directory / CONVERTED_FILE).read_text("utf-8"))["revision"]
        found.append(figures(ScoredModel(made), choice, algorithm))
    return found
