"""What `edge convert` prints of its results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge.cli.output import size, table

if TYPE_CHECKING:
    from edge.convert.fit import Fitted
    from edge.convert.level_table import Level
    from edge.convert.onnx import level_table as onnx_levels_of
    from edge.convert.onnx import to_onnx
    from edge.convert.onnx.certificate import Agreement
    from edge.convert.onnx.headed import Exported
    from edge.convert.proof import Certificate, Comparison
    from edge.convert.to_gguf import Made, Size
    from edge.convert.to_safetensors import Written


def made(files: Sequence[Made]) -> str:
    """The closing table, 80 columns wide; below it what is true of all files."""
    rows = [
        (
            one.level,
            size(one.bytes),
            f"{one.bits_per_weight:.2f}",
            str(len(one.fell_back)),
            f"{one.seconds:.1f}",
            *(figures(one.certificate.comparison) if one.certificate else ("none", "", "")),
        )
        for one in files
    ]
    header = ("level", "size", "bits/weight", "fell back", "seconds", "error", "kld", "top-1")
    lines = [table(rows, header)]
    alike: dict[tuple[str, ...], list[str]] = {}
    for one in files:
        alike.setdefault(one.fell_back, []).append(one.level)
    lines += [fallback(tensors, levels) for tensors, levels in alike.items() if tensors]
    lines += [f"note: {note}" for note in files[0].notes]
    lines.append(f"peak memory {size(files[-1].peak_rss_bytes)}; made:")
    lines += [f"  {one.path}" for one in files]
    return "\n".join(lines)


def fitted(one: Fitted) -> str:
    """The file's row, and what the choice of its types was worth."""
    than = ""
    if one.speedup:
        than = f"\nas good as {one.level}, and its matrices {one.speedup:.2f} times as fast, as predicted"
    return (
        f"{made([one.file])}\n{one.file.bytes:,} bytes; mean KLD {one.kld_measured:.2g} ± {one.kld_error:.1g} "
        f"measured on {one.tokens:,} tokens held back, {one.kld_predicted:.2g} predicted{than}"
    )


def figures(found: Comparison) -> tuple[str, str, str]:
    """Error of logits, or of hidden states where there are none; KL divergence; top-1 agreement, or a cosine."""
    error = found.hidden_error if found.logit_error is None else found.logit_error
    return (
        "–" if error is None else f"{error:.2g}",
        "–" if found.kl_divergence is None else f"{found.kl_divergence:.2g}",
        share(found),
    )


def share(found: Comparison) -> str:
    if found.top1_agreement is not None:
        return f"{found.top1_agreement:.1%}"
    return "–" if found.cosine is None else f"cosine {found.cosine:.5f}"


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


def onnx_made(folders: Sequence[to_onnx.Made]) -> str:
    """The closing table of ONNX folders, 80 columns wide; below it how the levels agree."""
    rows = [
        (
            one.level,
            size(one.bytes),
            f"{one.bits_per_weight:.2f}",
            f"{one.seconds:.1f}",
            *(figures(one.certificate.comparison) if one.certificate else ("none", "", "")),
        )
        for one in folders
    ]
    lines = [table(rows, ("level", "size", "bits/weight", "seconds", "error", "kld", "top-1"))]
    for one in folders:
        found = one.certificate.agreement if one.certificate else None
        if found and one.level != found.beside:
            lines.append(f"{one.level} beside {found.beside} on {found.lines} lines: {agreement(found)}")
    lines += [f"note: {note}" for note in folders[0].notes]
    lines.append(f"peak memory {size(folders[-1].peak_rss_bytes)}; made:")
    lines += [f"  {one.path}/" for one in folders]
    return "\n".join(lines)


def exported(one: Exported) -> str:
    """The folder of a trained model, and how it compares with `edge classify` of that."""
    found = one.certificate.comparison if one.certificate else None
    proof = f"logits within {found.logit_error:.1g} of the trained model's" if found else "not proven"
    return f"{one.path}/  {size(one.bytes)}  {one.level}  {proof}"


def agreement(found: Agreement) -> str:
    """The share of equal answers, the difference of scores, or cosines of embeddings."""
    if found.share is not None:
        return f"{found.share:.2%} the same label"
    if found.score_error is not None:
        return f"scores within {found.score_error:.2g} of the greatest"
    return f"cosine at least {found.least_cosine:.5f}, {found.mean_cosine:.5f} on the mean"


def onnx_sizes(folders: Sequence[to_onnx.Size]) -> str:
    rows = [(one.level, size(one.bytes), f"{one.bytes:,}", f"{one.bits_per_weight:.2f}") for one in folders]
    return table(rows, ("level", "size", "bytes", "bits/weight"))


def onnx_levels(found: Sequence[onnx_levels_of.Level]) -> str:
    rows = [(one.level, f"{one.bits_per_weight:.0f}", one.keeps) for one in found]
    return table(rows, ("level", "bits/weight", "keeps"))


def certificate(found: Certificate) -> str:
    """A level that loses nothing is refused where it differs; of the others only a reader can judge."""
    exact = found.level in ("f32", "f16", "bf16")
    verdict = "computes what its source does" if exact else f"is {found.level}, and so far from its source"
    return f"{found.file} {verdict}: {comparison(found.comparison)}"


def written(found: Written) -> str:
    lines = [f"{found.folder}  {found.dtype}  {size(found.bytes)}"]
    return "\n".join([*lines, *(f"note: {note}" for note in found.notes)])


def adapter(path: Path) -> str:
    return f"{path}  {size(path.stat().st_size)}"
