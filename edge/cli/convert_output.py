"""What `edge convert` prints of its results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge.cli.output import size, table

if TYPE_CHECKING:
    from edge.convert.level_table import Level
    from edge.convert.proof import Certificate, Comparison
    from edge.convert.to_gguf import Made, Size
    from edge.convert.to_safetensors import Written


def made(files: Sequence[Made]) -> str:
    """The closing table, notes below it."""
    rows = [
        (
            one.level,
            size(one.bytes),
            f"{one.bits_per_weight:.2f}",
            str(len(one.fell_back)),
            f"{one.seconds:.1f}",
            size(one.peak_rss_bytes),
            comparison(one.certificate.comparison) if one.certificate else "none",
            one.path.name,
        )
        for one in files
    ]
    header = ("level", "size", "bits/weight", "fell back", "seconds", "peak rss", "certificate", "file")
    lines = [table(rows, header)]
    alike: dict[tuple[str, ...], list[str]] = {}
    for one in files:
        alike.setdefault(one.fell_back, []).append(one.level)
    lines += [fallback(tensors, levels) for tensors, levels in alike.items() if tensors]
    lines += [f"note: {note}" for note in (files[0].notes if files else ())]
    return "\n".join(lines)


def fallback(tensors: Sequence[str], levels: Sequence[str]) -> str:
    """Why some tensors are not of their level's type."""
    those = f"{len(tensors)} tensors ({tensors[0]} …)" if len(tensors) > 1 else tensors[0]
    return f"{', '.join(levels)}: the rows of {those} do not divide into blocks; they took another type"


def comparison(found: Comparison) -> str:
    """How near a file is to its source, in a few words."""
    figures = (
        (found.logit_error, "logit error {:.2g}"),
        (found.kl_divergence, "KLD {:.2g}"),
        (found.top1_agreement, "top-1 {:.1%}"),
        (found.cosine, "cosine {:.5f}"),
    )
    parts = [words.format(value) for value, words in figures if value is not None]
    if not parts and found.hidden_error is not None:
        parts = [f"hidden error {found.hidden_error:.2g}"]
    return " · ".join(parts)


def sizes(files: Sequence[Size]) -> str:
    rows = [
        (
            one.level,
            size(one.bytes),
            f"{one.bytes:,}",
            f"{one.bits_per_weight:.2f}",
            str(len(one.fell_back)),
            "needs an importance matrix" if one.needs_importance else "",
        )
        for one in files
    ]
    return table(rows, ("level", "size", "bytes", "bits/weight", "fell back", ""))


def levels(found: Sequence[Level]) -> str:
    rows = [
        (
            one.level,
            f"{one.bits_per_weight:.2f}",
            "needs an importance matrix: --imatrix or --calibrate" if one.needs_importance else "",
        )
        for one in found
    ]
    return table(rows, ("level", "bits/weight of Llama 3 8B", ""))


def certificate(found: Certificate) -> str:
    return f"{found.file} computes what its source does: {comparison(found.comparison)}"


def written(found: Written) -> str:
    lines = [f"{found.folder}  {found.dtype}  {size(found.bytes)}"]
    return "\n".join([*lines, *(f"note: {note}" for note in found.notes)])


def adapter(path: Path) -> str:
    return f"{path}  {size(path.stat().st_size)}"
