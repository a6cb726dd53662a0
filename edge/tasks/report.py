"""Precision, recall and F1 of labels against the ones in the data: scikit-learn's figures, and for entities seqeval's.

The two compute F1 in different ways that differ in the last digit, and so do we: of the counts for labels
(2·tp / (gold + predicted)), of precision and recall for entities. Nothing divided by nothing is 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge.errors import BadData, RequestError
from edge.tasks.encoder import Array
from edge.tasks.entities import OUTSIDE, Tags, spans
from edge.tasks.rows import Label, Row, shown

Counts = NDArray[np.int64]
NONE = "(none)"  # in the confusion matrix: what got no label, or is no entity


@dataclass(frozen=True, slots=True)
class Score:
    """Precision, recall and F1, and how many there are in the data."""

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Report:
    """The scores of the labels that are in the data or the predictions, by name, and their averages.

    kind      single (one label a text), multi (any number) or entities
    accuracy  the share of texts whose labels are all right; None for entities
    matrix    counts, (gold, predicted) in the order of `names`, for one label a text and for entities;
              (label, gold no/yes, predicted no/yes) for many
    names     of the matrix's rows and columns: the labels, with (none) at the end where it is needed
    """

    kind: str
    rows: int
    accuracy: float | None
    labels: Mapping[str, Score]
    micro: Score
    macro: Score
    weighted: Score
    names: tuple[str, ...]
    matrix: Counts


class Single:
    """Counts of texts by their label and the predicted one. Takes no memory a row."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = sorted(labels)
        self.at = {label: at for at, label in enumerate(self.labels)}
        self.counts = np.zeros((len(labels), len(labels) + 1), np.int64)  # the last column got no label

    def add(self, gold: str, predicted: str | None) -> None:
        self.counts[self.at[gold], len(self.labels) if predicted is None else self.at[predicted]] += 1

    def report(self) -> Report:
        counts = self.counts
        right, gold, predicted = np.diag(counts), counts.sum(1), counts.sum(0)[:-1]
        seen = np.flatnonzero(gold + predicted)
        names = [self.labels[at] for at in seen]
        unlabelled = bool(counts[:, -1].any())
        columns = [*seen, len(self.labels)] if unlabelled else [*seen]
        matrix = counts[np.ix_(seen, columns)]
        if unlabelled:
            matrix, names = np.vstack([matrix, np.zeros_like(matrix[:1])]), [*names, NONE]
        rows = int(counts.sum())
        return Report(
            "single", rows, int(right.sum()) / rows if rows else 0.0,
            *scores([self.labels[at] for at in seen], right[seen], predicted[seen], gold[seen]),
            tuple(names), matrix,
        )  # fmt: skip


class Multi:
    """Counts of texts that have a label and of those that got it, label by label."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = sorted(labels)
        self.counts = np.zeros((len(labels), 2, 2), np.int64)
        self.rows = self.exact = 0

    def add(self, gold: Iterable[str], predicted: Iterable[str]) -> None:
        has, got = set(gold), set(predicted)
        for at, label in enumerate(self.labels):
            self.counts[at, int(label in has), int(label in got)] += 1
        self.rows += 1
        self.exact += has == got

    def report(self) -> Report:
        counts = self.counts
        right, gold, predicted = counts[:, 1, 1], counts[:, 1].sum(1), counts[:, :, 1].sum(1)
        return Report(
            "multi", self.rows, self.exact / self.rows if self.rows else 0.0,
            *scores(self.labels, right, predicted, gold),
            tuple(self.labels), counts,
        )  # fmt: skip


class Entities:
    """Counts of entities that are in the data, predicted, and both: type and borders alike."""

    def __init__(self, labels: Tags) -> None:
        self.scheme = labels
        self.confused: dict[tuple[str, str], int] = {}
        self.rows = 0

    def add(self, gold: Sequence[str], predicted: Sequence[str], gold_scheme: Tags) -> None:
        """The tags of a sentence; the data's may be written in another scheme than the model's."""
        self.rows += 1
        has = {(first, end): kind for kind, first, end in spans(gold, gold_scheme)}
        got = {(first, end): kind for kind, first, end in spans(predicted, self.scheme)}
        for where in {*has, *got}:
            pair = has.get(where, NONE), got.get(where, NONE)
            self.confused[pair] = self.confused.get(pair, 0) + 1

    def report(self) -> Report:
        names = [*sorted({kind for pair in self.confused for kind in pair} - {NONE}), NONE]
        counts = np.array(
            [[self.confused.get((row, column), 0) for column in names] for row in names], np.int64
        )
        right, gold, predicted = np.diag(counts)[:-1], counts.sum(1)[:-1], counts.sum(0)[:-1]
        return Report(
            "entities", self.rows, None,
            *scores(names[:-1], right, predicted, gold, harmonic=True),
            tuple(names), counts,
        )  # fmt: skip


def scores(
    names: Sequence[str], right: Counts, predicted: Counts, gold: Counts, *, harmonic: bool = False
) -> tuple[dict[str, Score], Score, Score, Score]:
    """Scores by name, and their micro, macro and weighted average, of the counts of each label."""
    each = parts(right, predicted, gold, harmonic)
    total = int(gold.sum())
    by_name = {name: score([part[at] for part in each], gold[at]) for at, name in enumerate(names)}
    sums = [counts.sum(keepdims=True) for counts in (right, predicted, gold)]
    micro = score([part[0] for part in parts(sums[0], sums[1], sums[2], harmonic)], total)
    macro = score([np.average(part) if len(names) else 0 for part in each], total)
    weighted = score([np.average(part, weights=gold) if total else 0 for part in each], total)
    return by_name, micro, macro, weighted


def score(figures: Sequence[float], support: int) -> Score:
    precision, recall, f1 = map(float, figures)
    return Score(precision, recall, f1, int(support))


def parts(right: Counts, predicted: Counts, gold: Counts, harmonic: bool) -> tuple[Array, Array, Array]:
    """Precision, recall and F1 of counts."""
    precision, recall = divided(right, predicted), divided(right, gold)
    if harmonic:
        return precision, recall, divided(2 * precision * recall, precision + recall)
    return precision, recall, divided(2.0 * right, gold + predicted)


def divided(over: Array, under: Array) -> Array:
    """A quotient that is 0 where nothing is divided by nothing."""
    return np.asarray(over / np.where(under == 0, 1, under))


def gold_labels(row: Row, labels: Sequence[str], *, several: bool, numbered: bool = True) -> tuple[str, ...]:
    """A row's labels by the model's names.

    A number is a name's position where the names are `numbered` and none is itself a number; with `several`, a text
    holds them separated by commas. Raises BadData for a label that the model lacks.
    """
    return tuple(known(name, labels, row.line, numbered) for name in each_label(row.label, row.line, several))


def each_label(label: Label, line: int, several: bool) -> tuple[str, ...]:
    if isinstance(label, str):
        return tuple(part.strip() for part in label.split(",") if part.strip()) if several else (label,)
    if label is None or (not several and len(label) != 1):
        raise BadData(
            f"line {line} has {len(label or ())} labels, and this model gives a text one", hint="give it one"
        )
    return label


def known(label: str, labels: Sequence[str], line: int, numbered: bool) -> str:
    if label in labels:
        return label
    if not numbered and label.isdecimal():
        raise BadData(
            f"line {line} has the label {shown(label)}, a number, and --labels gives names: {', '.join(labels)}",
            hint="write the labels of the data as names from --labels",
        )
    if (
        label.isdecimal()
        and len(label) < 10  # int() refuses thousands of digits
        and int(label) < len(labels)
        and not any(name.isdecimal() for name in labels)
    ):
        return labels[int(label)]
    raise BadData(
        f"line {line} has the label {label}, which the model lacks: its labels are {', '.join(labels)}",
        hint="rename the label in the data, or leave its rows out",
    )


def gold_tags(row: Row, kinds: Iterable[str], how: Tags) -> tuple[str, ...]:
    """A sentence's tags, checked against the types of entity that a model knows. Raises BadData, naming the line."""
    types = {*kinds}
    tags = row.label
    if not row.words or not isinstance(tags, tuple):
        raise RequestError(
            "a report on entities needs words with tags",
            hint="--format conll, or JSON lists of words and tags",
        )
    for at, tag in enumerate(tags):
        kind = how.parted(tag)[1]
        if tag != OUTSIDE and kind not in types:
            raise BadData(
                f"the sentence of line {row.line} tags {row.words[at]} with {tag}, which the model lacks: "
                f"its entities are {', '.join(sorted(types))}",
                hint="rename the tag in the data, or leave its sentences out",
            )
    return tags
