"""`edge train`: a classifier of one's own labels on this device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge.cli.output import emit_json, json_option, printable, size
from edge.cli.progress import bars
from edge.cli.references import complete_ref

if TYPE_CHECKING:
    from edge.tasks.train import Trained

path_option = click.Path(path_type=Path)


@click.command()
@click.argument("ref", shell_complete=complete_ref)
@click.option(
    "--data", type=path_option, required=True, metavar="FILE", help="Texts with labels: CSV, TSV or JSONL."
)
@click.option("--as", "name", required=True, metavar="NAME", help="Keep the classifier under this name.")
@click.option("--text-field", metavar="F", help="Field of the text.  [text, sentence, …, or the only one]")
@click.option("--label-field", metavar="F", help="Field of the label.  [label, category, …]")
@click.option(
    "--test", type=path_option, metavar="FILE", help="Texts to report on.  [held-out folds of --data]"
)
@click.option(
    "--backend", type=click.Choice(["onnx", "gguf"]), help="What runs the encoder.  [the faster one here]"
)
@click.option("--threads", type=click.IntRange(1, 512), metavar="N", help="Threads.  [all cores]")
@json_option
def command(
    ref: str,
    data: Path,
    name: str,
    text_field: str | None,
    label_field: str | None,
    test: Path | None,
    backend: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Train a classifier on this device.

    REF is an encoder that gives embeddings: a kept model, an ONNX folder or a GGUF file. It stays as it is; a linear
    head is fitted on what it makes of the texts. Regularisation, and class weights where some labels are rare, are
    chosen on held-out folds, on which the probabilities are calibrated, too, if there are 50 rows or more.
    Needs scikit-learn: pip install 'edge-runtime[train]'.

    \b
      edge train ./minilm-int8 --data train.csv --label-field category --test test.csv --as intents
      edge classify intents "How do I locate my card?"
      edge convert intents --to onnx

    NAME is kept with a copy of its encoder, so that nothing else is needed to run it.
    """
    from edge.tasks.train import train

    with bars() as steps:
        found = train(
            ref,
            data,
            name,
            text_field=text_field,
            label_field=label_field,
            test=test,
            backend=backend,
            threads=threads,
            steps=steps,
        )
    if as_json:
        emit_json(as_object(found))
        return
    from edge.cli.classify_output import report_text

    click.echo(report_text(found.report))
    click.echo("\n" + "\n".join(summary(found)))


def as_object(found: Trained) -> dict[str, object]:
    """All of it, with the report as `edge classify --report --json` has it."""
    from dataclasses import fields

    from edge.cli.classify_output import report_json

    return {field.name: getattr(found, field.name) for field in fields(found)} | {
        "report": report_json(found.report)
    }


def summary(found: Trained) -> list[str]:
    """What the report is of, how the head was chosen and calibrated, and what is kept."""
    from edge.tasks.fit import FOLDS

    encoder = " ".join(filter(None, (found.encoder.name, found.encoder.level)))
    weights = "labels weighted alike" if found.weighted else "labels as frequent as they are"
    lines = [
        f"reported on {'the test rows' if found.reported_on == 'test' else found.reported_on}",
        f"trained on {found.rows:,} texts with {len(found.counts):,} labels, {found.folds} folds"
        f" (C {found.strength:g}, {weights}):"
        f" embedding {found.seconds['embed']:.1f} s, fitting {found.seconds['fit']:.1f} s",
        calibration(found),
    ]
    rarest = min(found.counts, key=lambda label: found.counts[label])
    if found.folds < FOLDS:
        lines.append(f"{found.folds} folds and no more, since {printable(rarest)} has {found.folds} rows")
    if found.blank:
        lines.append(f"{found.blank:,} rows without a text were left out")
    if found.cut:
        lines.append(
            f"{found.cut:,} texts are longer than the {found.encoder.max_tokens:,} tokens that it reads"
        )
    return [
        *lines,
        f"kept as {found.model.name}: {size(found.model.bytes)} with {encoder}, {found.model.path}",
    ]


def calibration(found: Trained) -> str:
    """How certain it is of held-out rows, before and after the temperature."""
    from edge.tasks.fit import ENOUGH

    before, after = found.before, found.after
    if found.rows < ENOUGH:
        return (
            f"not calibrated, since {found.rows} rows are too few (fewer than {ENOUGH}): held-out NLL {after.nll:.4f},"
            f" ECE {after.ece:.4f}"
        )
    return (
        f"calibrated with temperature {found.temperature:.3f}: held-out NLL {before.nll:.4f} → {after.nll:.4f},"
        f" ECE {before.ece:.4f} → {after.ece:.4f}"
    )
