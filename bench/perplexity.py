"""Perplexity and divergence from logits, in the chunks and by the formulas of llama-perplexity.

A text is tokenized once and cut into chunks of `ctx` tokens; the first token of each is BOS where the model begins
its texts with one. A token of the second half is scored by the logits of the one before it, so that every score
has at least half a context behind it: ctx − 1 − ctx // 2 of them a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from math import exp, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import RequestError

Array = NDArray[Any]

BLOCK = 1 << 17  # logits that one step works on: 0.5 MiB, which stays in the cache of a core


@dataclass(frozen=True)
class Scores:
    """What files say of the same tokens, base first: `nll` (files, tokens) in nats; for the other files
    `kld` (files − 1, tokens), KL(base ‖ file) in nats, and `same_top`, whether both think one token likeliest."""

    nll: Array
    kld: Array
    same_top: Array


@dataclass(frozen=True)
class Divergence:
    """How far a file is from the base over all scored tokens.

    kld_*           KL(base ‖ file) in nats; the error is the mean's standard error
    delta_p_*       change of the probability of the text's own token, mean and root mean square
    top1_agreement  share of tokens at which both think the same one likeliest
    """

    kld_mean: float
    kld_error: float
    kld_median: float
    kld_p99: float
    kld_max: float
    delta_p_mean: float
    delta_p_rms: float
    top1_agreement: float


def scored(ctx: int) -> int:
    """How many tokens of a chunk are scored."""
    return ctx - 1 - ctx // 2


def cut(ids: Sequence[int], ctx: int, limit: int | None = None, bos: int | None = None) -> Array:
    """The chunks of a text, (chunks, ctx), at most `limit`; tokens left over at the end are not used.

    `bos` takes the place of every chunk's first token. Raises RequestError for fewer than 2 ctx tokens.
    """
    if len(ids) < 2 * ctx:
        raise RequestError(
            f"the text is {len(ids)} tokens and a context of {ctx} takes at least {2 * ctx}",
            hint="give a longer text or a smaller --ctx",
        )
    count = len(ids) // ctx if limit is None else min(limit, len(ids) // ctx)
    chunks = np.array(ids[: count * ctx], dtype=np.int32).reshape(count, ctx)
    if bos is not None:
        chunks[:, 0] = bos
    return chunks


def score(logits: Sequence[Array], targets: Array, pool: Executor) -> Scores:
    """Score (tokens, vocabulary) f32 logits of each file, the base's first, against the tokens that came.

    The rows are taken a few at a time, by all threads of the pool: NumPy holds no lock while it computes.
    """
    files, (tokens, vocabulary) = len(logits), logits[0].shape
    nll, kld = np.empty((files, tokens)), np.empty((files - 1, tokens))
    same_top = np.empty((files - 1, tokens), dtype=bool)
    step = max(1, BLOCK // vocabulary)

    def block(start: int) -> None:
        with np.errstate(invalid="ignore"):  # infinite logits become NaN, which the caller looks for
            score_rows(start)

    def score_rows(start: int) -> None:
        at = slice(start, start + step)
        base, column = logits[0][at], targets[at, None]
        top, weights, total, normalizer = softmax(base)
        nll[0, at] = normalizer - np.take_along_axis(base, column, 1)[:, 0]
        for index, rows in enumerate(logits[1:]):
            its_top, scratch, _, its_normalizer = softmax(rows[at])
            nll[index + 1, at] = its_normalizer - np.take_along_axis(rows[at], column, 1)[:, 0]
            same_top[index, at] = top == its_top
            # KL = Σ p (log p − log q), and log p − log q = base − rows − normalizer + its_normalizer
            np.subtract(base, rows[at], out=scratch)
            offset = np.take_along_axis(scratch, top[:, None], 1)
            scratch -= offset  # what all tokens differ by would only be rounded
            apart = np.einsum("ij,ij->i", weights, scratch) / total
            kld[index, at] = apart + offset[:, 0] - normalizer + its_normalizer

    list(pool.map(block, range(0, tokens, step)))
    return Scores(nll, kld, same_top)


def softmax(rows: Array) -> tuple[Array, Array, Array, Array]:
    """Of each row: the likeliest token; exponentials above the greatest logit, their sum; log Σ exp of the row."""
    top = rows.argmax(axis=1)
    greatest = np.take_along_axis(rows, top[:, None], 1)
    weights = rows - greatest
    np.exp(weights, out=weights)
    total = weights.sum(axis=1, dtype=np.float64)  # small divergences are differences of these
    return top, weights, total, greatest[:, 0] + np.log(total)


def perplexity(nll: Array) -> tuple[float, float]:
    """exp of the mean, and its standard error: that of the mean carried through the exponential."""
    value = exp(nll.mean())
    return value, value * mean_error(nll)


def divergence(nll_base: Array, nll: Array, kld: Array, same_top: Array) -> Divergence:
    """The statistics of one file against the base, over all tokens (1-D arrays of one length)."""
    delta_p = np.exp(-nll) - np.exp(-nll_base)
    return Divergence(
        kld_mean=float(kld.mean()),
        kld_error=mean_error(kld),
        kld_median=float(np.median(kld)),
        kld_p99=float(np.percentile(kld, 99)),
        kld_max=float(kld.max()),
        delta_p_mean=float(delta_p.mean()),
        delta_p_rms=sqrt(float(np.square(delta_p).mean())),
        top1_agreement=float(same_top.mean()),
    )


def mean_error(values: Array) -> float:
    """Standard error of the mean, the spread's square divided by count − 1."""
    return sqrt(values.var() / max(1, values.size - 1))
