"""Texts by how well they answer a query: a cross-encoder reads both at once, an encoder compares two embeddings."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from edge.errors import EngineError, RequestError
from edge.tasks import stream
from edge.tasks.classify import REGRESSION, probabilities
from edge.tasks.encoder import About, Array, Encoder
from edge.tasks.rows import Row


@dataclass(frozen=True, slots=True)
class Ranked:
    """A text with its score and the line it stands on; `left_out` counts the tokens that were not read.

    The score is a cosine, or a cross-encoder's probability; of a regression it is the value.
    """

    text: str
    score: float
    line: int
    left_out: int = 0


def rerank(encoder: Encoder, query: str, rows: Iterable[Row], *, top: int | None = None) -> list[Ranked]:
    """The texts from the best score to the worst, equals in the order of the input; blank ones are left out.

    With `top`, no more than so many are held. Raises RequestError for a blank query and a model that does neither.
    """
    if not query.strip():
        raise RequestError("the query is empty", hint="say what is looked for")
    if top is not None and top < 1:
        raise RequestError(f"the top {top} texts are none", hint="give --top 1 or more")
    scored = scores(encoder, query, (row for row in rows if row.text.strip()))
    numbered = ((raw, -number, ranked) for number, (raw, ranked) in enumerate(scored))
    if top is None:
        return [ranked for _, _, ranked in sorted(numbered, key=lambda each: each[:2], reverse=True)]
    return [ranked for _, _, ranked in heapq.nlargest(top, numbered, key=lambda each: each[:2])]


def scores(encoder: Encoder, query: str, rows: Iterable[Row]) -> Iterator[tuple[float, Ranked]]:
    """What each text is sorted by (a logit or a cosine), and the text with its score."""
    about = encoder.about
    if about.task == "embedding":
        (tokens,) = encoder.tokenize([query])
        if tokens.left_out:
            raise RequestError(
                f"the query is {len(tokens.ids) + tokens.left_out} tokens and {about.name} reads {about.max_tokens}",
                hint="shorten it",
            )
        wanted = unit(about, encoder.run([tokens])[0])
        for row, read, output in stream.run(encoder, rows):
            assert read is not None
            assert output is not None
            cosine = float(wanted @ unit(about, output))
            yield cosine, Ranked(row.text, cosine, row.line, read.left_out)
    elif is_cross_encoder(about):
        pairs = (replace(row, text=query, pair=row.text, words=()) for row in rows)
        for row, read, output in stream.run(encoder, pairs):
            assert read is not None
            assert output is not None
            if not np.isfinite(output).all():
                raise no_number(about)
            logit = float(output[0])
            score = logit if about.problem == REGRESSION else float(probabilities(output, multi=True)[0])
            yield logit, Ranked(row.pair or "", score, row.line, read.left_out)
    else:
        raise RequestError(
            f"{about.name} has {len(about.labels)} labels, and a text is ranked by one score",
            hint="take a cross-encoder with one label, or an encoder that gives embeddings",
        )


def is_cross_encoder(about: About) -> bool:
    """Whether a model gives a text one score."""
    return about.task == "classification" and len(about.labels) == 1


def unit(about: About, vector: Array) -> Array:
    """A vector of length 1, float64."""
    exact = np.asarray(vector, np.float64)
    length = float(np.linalg.norm(exact))
    if not np.isfinite(length) or not length:
        raise no_number(about)
    return np.asarray(exact / length)


def no_number(about: About) -> EngineError:
    return EngineError(
        f"{about.name} gives no number for a text", hint="its weights are damaged: convert it again"
    )
