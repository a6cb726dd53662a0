"""A classifier trained on this device: an encoder that stays as it is, and a linear head fitted on its embeddings.

The model that is kept holds a copy of the encoder. A head is only right for the very embeddings it was fitted on, of
one level of one file, so it must not change or go when the encoder is converted again, moved or removed.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import numpy as np

from edge import store
from edge.errors import BadData, RequestError
from edge.machine import host
from edge.store import made
from edge.store.records import Model
from edge.tasks import answers, artifacts, fit, head, rows, stream
from edge.tasks.encoder import About, Array, Encoder
from edge.tasks.keep import keep
from edge.tasks.open import open_encoder
from edge.tasks.report import Report, Single, each_label, known
from edge.tasks.rows import Fields, Row
from edge.tasks.source import opened

SAMPLE = 64  # texts that backends are timed on

# what is done, how much of it, of how much
Steps = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Trained:
    """What was trained and kept, and how well it does.

    rows        texts it was fitted on; `blank` had no text and were left out, `cut` were longer than the encoder reads
    counts      rows of each label
    strength    C of the regularisation, `weighted` whether labels count alike however many rows they have
    before      held-out figures without the temperature, `after` with it
    reported_on `test`, or `held-out folds` of the training data
    seconds     `embed` and `fit`
    """

    model: Model
    encoder: About
    rows: int
    blank: int
    cut: int
    counts: Mapping[str, int]
    folds: int
    strength: float
    weighted: bool
    temperature: float
    before: fit.Figures
    after: fit.Figures
    report: Report
    reported_on: str
    seconds: Mapping[str, float]


def train(
    ref: str,
    data: Path,
    name: str,
    *,
    text_field: str | None = None,
    label_field: str | None = None,
    test: Path | None = None,
    backend: str | None = None,
    threads: int | None = None,
    steps: Steps = lambda doing, done, total: None,
) -> Trained:
    """Train a classifier of the texts and labels in `data` on the encoder `ref`, and keep it as `name`.

    Raises BadData for what the data lacks (labels, a second label, two rows of each) and for test labels that the
    training data has not, RequestError for a taken name, an encoder that gives no embeddings and where scikit-learn is
    missing.
    """
    made.refuse_kept(name)
    refuse_others(ref)
    threads = threads or host().cpu.performance_cores
    with fit.solver():
        pass  # it is missing now rather than after minutes
    fields = Fields(text_field, None, label_field, labelled=True)
    examples, blank = labelled(data, fields)
    labels = tuple(sorted({label for _, label in examples}))
    fit.check_counts([label for _, label in examples], labels)
    tests = tested(test, fields, labels) if test else []
    sample = [row.text for row, _ in examples[:SAMPLE]]
    with closing(open_encoder(ref, backend=backend, threads=threads, sample=sample)) as encoder:
        about = encoder.about
        begun = time.monotonic()
        x, cut = embedded(encoder, [row for row, _ in examples], steps)
        embedded_at = time.monotonic()
        numbers = {label: number for number, label in enumerate(labels)}
        y = np.array([numbers[label] for _, label in examples])
        fitted = fit.fit(x, y, threads=threads, report=lambda done, total: steps("fitting", done, total))
        seconds = {"embed": round(embedded_at - begun, 3), "fit": round(time.monotonic() - embedded_at, 3)}
        facts = facts_of(about, ref, fitted, len(examples), seconds)
        trained = head.LinearHead(labels, fitted.weight, fitted.bias, facts)
        classifier = head.HeadedEncoder(encoder, trained, name, about.path)
        counts = np.bincount(y).tolist()
        report = (
            report_on(classifier, tests, steps)
            if test
            else report_of([label for _, label in examples], labels, fitted.held_out.argmax(axis=1))
        )
        model = keep(name, about, trained, licence_of(ref))
    return Trained(
        model, about, len(examples), blank, cut, dict(zip(labels, counts, strict=True)),
        fitted.folds, fitted.strength, fitted.weighted, fitted.temperature, fitted.before, fitted.after,
        report, "test" if test else "held-out folds", seconds,
    )  # fmt: skip


def refuse_others(ref: str) -> None:
    """Raise RequestError for a model that gives no embeddings, before anything is loaded."""
    if (kind := artifacts.task(ref)) != "embedding":
        raise RequestError(
            f"{ref} is a model for {kind}, and a head is trained on embeddings",
            hint="name an encoder that gives them, such as a sentence-transformers checkpoint, converted",
        )


def licence_of(ref: str) -> str:
    """An encoder's licence, where the store knows it."""
    kept = store.kept_as(ref)
    return kept.licence if kept else ""


def labelled(data: Path, fields: Fields) -> tuple[list[tuple[Row, str]], int]:
    """The rows of a file with their labels, and how many more had no text. Raises BadData."""
    found, blank = list[tuple[Row, str]](), 0
    with opened(data) as source:
        for row in rows.read(source, None, fields):
            (label,) = each_label(row.label, row.line, several=False)
            if row.text.strip():
                found.append((row, label))
            else:
                blank += 1
    if not found:
        raise BadData(f"{data} has no row with a text", hint="--text-field says which field holds it")
    return found, blank


def tested(test: Path, fields: Fields, labels: Sequence[str]) -> list[tuple[Row, str]]:
    """The rows to test on, their labels all known. Raises BadData naming the line of one that is not."""
    examples, _ = labelled(test, fields)
    return [(row, known(label, labels, row.line, numbered=True)) for row, label in examples]


def embedded(encoder: Encoder, texts: Sequence[Row], steps: Steps) -> tuple[Array, int]:
    """Embeddings (texts, width), float32, and how many texts were cut."""
    found, cut = np.empty((len(texts), encoder.about.width), np.float32), 0
    for at, (_, tokens, output) in enumerate(stream.run(encoder, texts)):
        assert tokens is not None
        found[at] = output
        cut += tokens.left_out > 0
        steps("embedding", at + 1, len(texts))
    return found, cut


def report_on(classifier: Encoder, tests: Sequence[tuple[Row, str]], steps: Steps) -> Report:
    """The report on rows that it was not trained on, as `edge classify --report` prints it."""
    done = 0

    def tell(answer: answers.Answer) -> None:
        nonlocal done
        done += 1
        steps("testing", done, len(tests))

    return answers.report(classifier, [row for row, _ in tests], answers.Wish(), tell=tell)


def report_of(gold: Sequence[str], labels: Sequence[str], predicted: Array) -> Report:
    """The report on held-out predictions, numbers of `labels`."""
    counted = Single(labels)
    for label, number in zip(gold, predicted, strict=True):
        counted.add(label, labels[number])
    return counted.report()


def facts_of(
    about: About, ref: str, fitted: fit.Fitted, count: int, seconds: Mapping[str, float]
) -> dict[str, object]:
    """What head.json says beside the labels; the encoder's hashes come when it is copied."""
    libraries = ("edge-runtime", "numpy", "scikit-learn")
    return {
        "encoder": {"ref": ref, "name": about.name, "backend": about.backend, "level": about.level},
        "training": {
            "rows": count,
            "folds": fitted.folds,
            "strength": fitted.strength,
            "weighted": fitted.weighted,
            "temperature": fitted.temperature,
            "held_out_before": asdict(fitted.before),
            "held_out": asdict(fitted.after),
            "seconds": seconds,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        },
        "versions": {"python": platform.python_version()} | {name: version(name) for name in libraries},
    }
