"""Labels and probabilities out of a classifier's logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edge.errors import EngineError, RequestError
from edge.tasks.encoder import About, Array
from edge.tasks.rows import Row
from edge.tasks.stream import Part

MULTI, REGRESSION = "multi_label_classification", "regression"
THRESHOLD = 0.5  # of a model with many labels a text, where none is given


@dataclass(frozen=True, slots=True)
class Scored:
    """A label and its probability."""

    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class Classified:
    """A text with its label, the likeliest first in `labels`.

    `label` is None for a blank text and where no label reaches the threshold. Of a model with many labels a text,
    `labels` are those that reach it. A regression has a `value` for each of its outputs, and no probability.
    `left_out` counts the tokens at the end of a long text that were not read.
    """

    text: str
    pair: str | None = None
    label: str | None = None
    probability: float | None = None
    labels: tuple[Scored, ...] = ()
    values: tuple[tuple[str, float], ...] = ()
    left_out: int = 0


@dataclass(frozen=True)
class Reading:
    """How logits become labels: which of the model's labels, how many are shown, from which probability on.

    `chosen` are the positions of the labels to choose among; `threshold` None is 0.5 with many labels a text, else 0.
    """

    about: About
    chosen: tuple[int, ...]
    top: int | None = None
    threshold: float | None = None

    @property
    def multi(self) -> bool:
        """Whether each label is decided by itself; a single one can only be decided so."""
        return not self.regression and (self.about.problem == MULTI or len(self.about.labels) == 1)

    @property
    def regression(self) -> bool:
        return self.about.problem == REGRESSION

    @property
    def least(self) -> float:
        return (THRESHOLD if self.multi else 0.0) if self.threshold is None else self.threshold


def reading(
    about: About, labels: Sequence[str] = (), *, top: int | None = None, threshold: float | None = None
) -> Reading:
    """A model's labels, or those of them that are named. Raises RequestError for one that it lacks."""
    for label in labels:
        if label not in about.labels:
            raise RequestError(
                f"{about.name} has no label {label}", hint=f"its labels are {', '.join(about.labels)}"
            )
    if threshold is not None and not 0 <= threshold <= 1:
        raise RequestError(f"a threshold of {threshold:g} is no probability", hint="give one from 0 to 1")
    if top is not None and top < 1:
        raise RequestError(f"the top {top} labels are none", hint="give --top 1 or more")
    chosen = [at for at, label in enumerate(about.labels) if not labels or label in labels]
    return Reading(about, tuple(chosen), top, threshold)


def probabilities(logits: Array, *, multi: bool) -> Array:
    """Softmax over the labels, or the sigmoid of each by itself, in float64: (labels,) → (labels,)."""
    exact = np.asarray(logits, np.float64)
    if multi:
        return np.asarray(0.5 * (1 + np.tanh(0.5 * exact)))  # a sigmoid that cannot overflow
    raised = np.exp(exact - exact.max(axis=-1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=-1, keepdims=True))


def no_number(about: About, row: Row) -> EngineError:
    """A model that gives NaN or infinity, and for which text."""
    return EngineError(
        f"{about.name} gives no number for the text of line {row.line}",
        hint="its weights are damaged: convert it again",
    )


def likelihoods(logits: Sequence[float], *, multi: bool) -> list[float]:
    """The same of one text's logits: NumPy would take ten times as long for a few."""
    if multi:
        return [0.5 * (1 + math.tanh(0.5 * logit)) for logit in logits]
    most = max(logits)
    raised = [math.exp(logit - most) for logit in logits]
    whole = sum(raised)
    return [each / whole for each in raised]


def classified(how: Reading, row: Row, parts: Sequence[Part]) -> Classified:
    """A row's labels. Windows of a long text count by their tokens, in the mean of the probabilities."""
    if not parts:
        return Classified(row.text, row.pair)
    given = [part.output.tolist() for part in parts]
    each = [[logits[at] for at in how.chosen] for logits in given]
    if not all(math.isfinite(value) for values in each for value in values):
        raise no_number(how.about, row)
    left_out = parts[0].tokens.left_out if len(parts) == 1 else 0
    if not how.regression:
        each = [likelihoods(values, multi=how.multi) for values in each]
    mean = each[0]
    if len(each) > 1:
        mean = np.average(each, axis=0, weights=[len(part.tokens.ids) for part in parts]).tolist()
    names = [how.about.labels[at] for at in how.chosen]
    if how.regression:
        return Classified(row.text, row.pair, values=tuple(zip(names, mean, strict=True)), left_out=left_out)
    order = sorted(
        range(len(mean)), key=mean.__getitem__, reverse=True
    )  # of equals the first, as argmax has it
    best = mean[order[0]]
    likeliest = names[order[0]] if best >= how.least else None
    shown = [at for at in order if mean[at] >= how.least] if how.multi else order
    labels = tuple(Scored(names[at], mean[at]) for at in shown[: how.top])
    return Classified(row.text, row.pair, likeliest, best, labels, left_out=left_out)
