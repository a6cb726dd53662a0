"""What each level costs a classifier: its test set's accuracy, or F1 of entities, beside the first level's."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from edge.tasks import answers, rows, source
from edge.tasks.open import open_encoder

LEVELS = ("fp32", "fp16", "int8", "int8w", "int4")


@dataclass(frozen=True)
class Scores:
    """A checkpoint's test set: its texts, what is counted, and the figure of each level, 0 to 1."""

    checkpoint: str
    texts: int
    measure: str
    by_level: tuple[float, ...]


def accuracy(sets: Sequence[tuple[Path, Path]], levels: Sequence[str] = LEVELS) -> tuple[Scores, ...]:
    """Convert each checkpoint to the levels and score them on its test set.

    A .tsv file has texts and labels in its first two columns and no header; .json, .jsonl and .csv name them; another
    suffix is CoNLL's. Raises what `edge convert` and `edge classify --report` raise.
    """
    from edge.convert.onnx.to_onnx import convert

    found = []
    for checkpoint, test in sets:
        with tempfile.TemporaryDirectory() as folder:
            made = convert(checkpoint, list(levels), Path(folder), prove=False)
            reports = [scored(one.path, test) for one in made]
        texts, measure, _ = reports[0]
        found.append(Scores(checkpoint.name, texts, measure, tuple(value for _, _, value in reports)))
    return tuple(found)


def scored(model: Path, test: Path) -> tuple[int, str, float]:
    """Texts, the measure's name and its value."""
    form = rows.SUFFIXES.get(test.suffix, "conll")
    columns = ("1", "2") if form == "tsv" else (None, None)
    fields = rows.Fields(text=columns[0], label=columns[1], labelled=True)
    with source.opened(test) as lines, closing(open_encoder(str(model))) as encoder:
        report = answers.report(encoder, rows.read(lines, form, fields), answers.Wish())
    if report.accuracy is None:
        return report.rows, "F1", report.micro.f1
    return report.rows, "accuracy", report.accuracy


def lines(found: Sequence[Scores], levels: Sequence[str]) -> list[str]:
    """A Markdown table: percent, and points of difference to the first level."""
    table = [
        "| checkpoint | texts | measure | " + " | ".join(levels) + " |",
        "|---|---|---|" + "---|" * len(levels),
    ]
    for one in found:
        first, *others = one.by_level
        cells = [
            f"{100 * first:.2f}",
            *(f"{100 * value:.2f} ({100 * (value - first):+.2f})" for value in others),
        ]
        table.append(f"| {one.checkpoint} | {one.texts:,} | {one.measure} | " + " | ".join(cells) + " |")
    return table
