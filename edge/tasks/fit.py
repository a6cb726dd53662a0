"""A regularised linear classifier on embeddings, and how well it does on rows it was not fitted on.

Features are centred and divided by one figure, their root mean square, so that a regularisation strength means the same
for every encoder. Each by its own deviation did no better on PhraseBank, and some encoders have dimensions that never
change. Strength and class weights are chosen on held-out folds; where those are ENOUGH rows, one temperature
then makes the probabilities as certain as they are right there (Guo et al. 2017, On Calibration of Modern Neural
Networks, 4.2).
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from edge.errors import BadData, EngineError, RequestError
from edge.tasks.encoder import Array

FOLDS = 5
STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # C, from the strongest regularisation on
SKEW = 2.0  # most rows of a class to fewest, from which weights are tried
WORTH = 0.005  # of macro F1 that weights must bring: they cost certainty that is right
BINS = 15  # of the expected calibration error, as in Guo et al.
ENOUGH = 50  # rows for a temperature: of few, often none is held out wrong, and the lowest is then the best
STEPS, TOLERANCE = 500, 1e-3  # of the solver

# how many of the steps are done, of how many at most
Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Figures:
    """Mean negative log-likelihood (nats) and expected calibration error of held-out rows."""

    nll: float
    ece: float


@dataclass(frozen=True)
class Fitted:
    """`weight` (labels, width) and `bias` (labels,) for embeddings as they come, the temperature in them.

    `held_out` (rows, labels) are each row's logits from the fold that did not see it, calibrated too.
    """

    weight: Array
    bias: Array
    held_out: Array
    strength: float
    weighted: bool
    folds: int
    temperature: float
    before: Figures
    after: Figures


@dataclass(frozen=True)
class Choice:
    """A strength with or without class weights, and the logits that it gives held-out rows."""

    strength: float
    weighted: bool
    held_out: Array
    nll: float


def fit(x: Array, y: Array, *, threads: int, report: Report) -> Fitted:
    """A classifier of embeddings x (rows, width) by y (rows,), numbers of labels that each have two rows or more.

    Raises RequestError where scikit-learn is missing, EngineError where an embedding is not finite.
    """
    check_finite(x)
    with solver() as model:
        centre = x.mean(axis=0, dtype=np.float64)
        scale = float(np.sqrt(np.mean((x - centre) ** 2, dtype=np.float64))) or 1.0
        scaled = ((x - centre) / scale).astype(np.float32)
        chosen, folds = choose(model, scaled, y, threads, report)
        weight, bias = solved(model, scaled, y, chosen.strength, chosen.weighted)
    temperature = calibrated(chosen.held_out, y)
    weight = weight / (scale * temperature)
    bias = bias / temperature - weight @ centre
    held_out = chosen.held_out / temperature
    return Fitted(
        weight.astype(np.float32),
        bias.astype(np.float32),
        held_out,
        chosen.strength,
        chosen.weighted,
        folds,
        temperature,
        figures(chosen.held_out, y),
        figures(held_out, y),
    )


def check_counts(given: Sequence[str], labels: Sequence[str]) -> None:
    """Raise BadData for fewer than two labels, or a label with a single row."""
    if len(labels) < 2:
        raise BadData(
            f"all {len(given)} rows have the label {labels[0]}, and a classifier needs two",
            hint="add rows of another label",
        )
    counts = Counter(given)
    few = [label for label in labels if counts[label] < 2]
    if few:
        named = ", ".join(few[:5]) + (", …" if len(few) > 5 else "")
        raise BadData(
            f"{len(few)} of {len(labels)} labels have a single row: {named}",
            hint="each needs 2, one to learn from and one to be held out; add rows or leave those labels out",
        )


def check_finite(x: Array) -> None:
    """Raise EngineError for embeddings that are no numbers."""
    lost = int((~np.isfinite(x)).any(axis=1).sum())
    if lost:
        raise EngineError(
            f"the encoder gives NaN or infinite values for {lost} of {len(x)} texts",
            hint="its weights are damaged, or its level is too coarse for it; convert it again",
        )


@contextmanager
def solver() -> Iterator[Any]:
    """scikit-learn's `linear_model`, silent about what has not converged to the last digit.

    Its matrix products run on one thread each, and folds at the same time instead: products this narrow gain nothing
    from threads that wait for each other.
    """
    try:
        linear = import_module("sklearn.linear_model")
        limits = import_module("threadpoolctl").threadpool_limits
    except ImportError:
        raise RequestError(
            "training a head needs scikit-learn, which is not installed",
            hint="run `pip install 'edge-runtime[train]'`",
        ) from None
    with limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield linear


def choose(model: Any, x: Array, y: Array, threads: int, report: Report) -> tuple[Choice, int]:
    """The best choice on held-out folds, and how many folds there were: as many as the rarest label has rows, or 5."""
    counts = np.bincount(y)
    folds = min(FOLDS, int(counts.min()))
    skewed = counts.max() >= SKEW * counts.min()
    total = len(STRENGTHS) * (2 if skewed else 1)
    plain = strongest(model, x, y, folds, False, threads, lambda done: report(done, total))
    if skewed:
        weighted = strongest(
            model, x, y, folds, True, threads, lambda done: report(len(STRENGTHS) + done, total)
        )
        if macro_f1(weighted.held_out, y) >= macro_f1(plain.held_out, y) + WORTH:
            return weighted, folds
    return plain, folds


def strongest(
    model: Any, x: Array, y: Array, folds: int, weighted: bool, threads: int, report: Callable[[int], None]
) -> Choice:
    """The strength with the lowest held-out NLL at the temperature that it would get.

    NLL falls and then rises with C, so the search ends where it has risen; a weak regularisation takes longest.
    """
    parts = split(y, folds)
    solutions: list[tuple[Array, Array] | None] = [None] * folds

    def solve(fold: int) -> tuple[Array, Array]:
        seen = parts != fold
        return solved(model, x[seen], y[seen], strength, weighted, solutions[fold])

    best: Choice | None = None
    with ThreadPoolExecutor(threads, thread_name_prefix="fit") as pool:
        for number, strength in enumerate(STRENGTHS, 1):
            solutions = list(pool.map(solve, range(folds)))
            held_out = np.empty((len(y), int(y.max()) + 1), np.float32)
            for fold, solution in enumerate(solutions):
                assert solution
                held_out[parts == fold] = x[parts == fold] @ solution[0].T + solution[1]
            tried = Choice(strength, weighted, held_out, nll(held_out / calibrated(held_out, y), y))
            report(number)
            if best and tried.nll >= best.nll:
                break
            best = tried
    assert best
    return best


def split(y: Array, folds: int) -> Array:
    """The fold (rows,) that holds each row out; every label is spread evenly over them, the same at every run."""
    random, parts, begin = np.random.default_rng(0), np.empty(len(y), np.int64), 0
    for label in range(int(y.max()) + 1):
        (rows,) = np.nonzero(y == label)
        parts[random.permutation(rows)] = (begin + np.arange(len(rows))) % folds
        begin += len(rows)
    return parts


def solved(
    model: Any, x: Array, y: Array, strength: float, weighted: bool, start: tuple[Array, Array] | None = None
) -> tuple[Array, Array]:
    """Weight (labels, width) and bias (labels,) that minimise the multinomial loss + |weight|² / 2C."""
    kind = model.LogisticRegression(
        C=strength,
        class_weight="balanced" if weighted else None,
        max_iter=STEPS,
        tol=TOLERANCE,
        warm_start=start is not None,
    )
    two = int(y.max()) == 1
    if start:
        weight, bias = ((part[1:] * 2 if two else part) for part in start)
        kind.coef_, kind.intercept_ = weight, bias
    kind.fit(x, y)
    weight, bias = kind.coef_.astype(np.float64), kind.intercept_.astype(np.float64)
    if two:  # of two labels it keeps the difference of the logits
        return np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return weight, bias


def calibrated(logits: Array, y: Array) -> float:
    """The temperature that held-out logits (rows, labels) are divided by: 1 where the rows are too few to choose it."""
    return tempered(logits, y) if len(y) >= ENOUGH else 1.0


def tempered(logits: Array, y: Array) -> float:
    """The temperature with the lowest NLL of logits / temperature, by golden section over its logarithm."""
    ratio, low, high = (np.sqrt(5) - 1) / 2, -3.0, 3.0
    points = [high - ratio * (high - low), low + ratio * (high - low)]
    values = [nll(logits / np.exp(point), y) for point in points]
    while high - low > 1e-3:
        if values[0] < values[1]:
            high, points[1], values[1] = points[1], points[0], values[0]
            points[0] = high - ratio * (high - low)
            values[0] = nll(logits / np.exp(points[0]), y)
        else:
            low, points[0], values[0] = points[0], points[1], values[1]
            points[1] = low + ratio * (high - low)
            values[1] = nll(logits / np.exp(points[1]), y)
    return float(np.exp((low + high) / 2))


def log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def nll(logits: Array, y: Array) -> float:
    """Mean negative log-likelihood of the labels, nats."""
    return float(-log_softmax(logits)[np.arange(len(y)), y].mean()) + 0.0  # never -0.0


def figures(logits: Array, y: Array) -> Figures:
    """How right and how certain logits (rows, labels) are: ECE over 15 bins of equal width."""
    probabilities = np.exp(log_softmax(logits))
    sure, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == y
    bins = np.minimum((sure * BINS).astype(np.int64), BINS - 1)
    gaps = (abs((sure - right)[bins == each].sum()) for each in range(BINS))
    return Figures(nll(logits, y), float(sum(gaps)) / len(y))


def macro_f1(logits: Array, y: Array) -> float:
    """The mean over labels of the F1 of the likeliest label."""
    labels, said = logits.shape[1], logits.argmax(axis=1)
    right = np.bincount(y[said == y], minlength=labels)
    both = np.bincount(y, minlength=labels) + np.bincount(said, minlength=labels)
    return float(np.mean(2 * right / np.maximum(both, 1)))
