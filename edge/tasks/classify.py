"""Labels and probabilities out of a classifier's logits."""

from __future__ import annotations

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


def finite(about: About, row: Row, output: Array) -> None:
    """Raise EngineError where a model does not give numbers."""
    if not np.isfinite(output).all():
        raise EngineError(
            f"{about.name} gives no number for the text of line {row.line}",
            hint="its weights are damaged: convert it again",
        )


def classified(how: Reading, row: Row, parts: Sequence[Part]) -> Classified:
    """A row's labels. Windows of a long text count by their tokens, in the mean of the probabilities."""
    if not parts:
        return Classified(row.text, row.pair)
    for part in parts:
        finite(how.about, row, part.output)
    chosen = list(how.chosen)
    left_out = sum(part.tokens.left_out for part in parts) if len(parts) == 1 else 0
    weights = [len(part.tokens.ids) for part in parts]
    if how.regression:
        values = np.average(
            [part.output[chosen].astype(np.float64) for part in parts], axis=0, weights=weights
        )
        named = tuple((how.about.labels[at], float(value)) for at, value in zip(chosen, values, strict=True))
        return Classified(row.text, row.pair, values=named, left_out=left_out)
    each = [probabilities(part.output[chosen], multi=how.multi) for part in parts]
    mean = each[0] if len(each) == 1 else np.average(each, axis=0, weights=weights)
    order = np.argsort(-mean, kind="stable")  # of equals the first label, as argmax has it
    best = float(mean[order[0]])
    likeliest = how.about.labels[chosen[order[0]]] if best >= how.least else None
    shown = [at for at in order if mean[at] >= how.least] if how.multi else list(order)
    labels = tuple(Scored(how.about.labels[chosen[at]], float(mean[at])) for at in shown[: how.top])
    return Classified(row.text, row.pair, likeliest, best, labels, left_out=left_out)
