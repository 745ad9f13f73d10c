"""The table of methods for people: what this machine has for each variant. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection

from qspec.quant.methods import METHODS, Backend, Role, Support, Variant
from qspec.quant.weight_formats import WEIGHT_FORMATS

_HEADINGS = (
    "method", "weights", "activations", "bits/weight", "group", "draft", "verify", "same bits", "reads a plane of",
)


def methods_table(backend: Backend, missing: Collection[tuple[str, Role]] = ()) -> str:
    """One row per variant; a method's first variant is what its name alone means.

    ``missing``: methods whose kernels this machine lacks though its backend has them, and single variants, as
    ``METHOD:VARIANT``, of which it lacks everything.
    """
    rows = [_HEADINGS]

    def shown(method: str, variant: Variant, role: Role) -> str:
        support = variant.on(backend, role)
        kernel_missing = support is Support.REAL and (method, role) in missing
        absent = kernel_missing or (f"{method}:{variant.name}", role) in missing
        return (Support.ABSENT if absent else support).value

    for method in METHODS.values():
        for variant in method.variants:
            rows.append((
                f"{method.name}:{variant.name}", variant.weights, variant.activations,
                f"{variant.bits_per_weight:.3g}", str(variant.group_size or "-"),
                shown(method.name, variant, Role.DRAFT), shown(method.name, variant, Role.VERIFY),
                "yes" if variant.row_invariant else "no", WEIGHT_FORMATS[variant.weights].plane_of or "-",
            ))
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
