"""Labels and embeddings of texts from Python, in one call each."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from edge.errors import RequestError
from edge.tasks import answers, stream
from edge.tasks.embed import refuse_others
from edge.tasks.open import open_encoder
from edge.tasks.rows import Row

SAMPLE = 64  # texts that backends are timed with


def classify(
    ref: str,
    texts: Sequence[str],
    *,
    labels: Sequence[str] = (),
    backend: str | None = None,
    threads: int | None = None,
) -> list[answers.Answer]:
    """The answer for each text: its label, probability and `labels`, or its `entities`.

    `ref` as `edge classify` takes it; a chat model needs `labels` to choose among. Raises what opening the model
    raises, and RequestError for a model that has no labels.
    """
    rows = rows_of(texts)
    encoder, _ = answers.opened(ref, labels, (), backend=backend, threads=threads, sample=texts[:SAMPLE])
    with closing(encoder):
        return list(answers.answers(encoder, rows, answers.Wish(labels=tuple(labels))))


def embed(
    ref: str, texts: Sequence[str], *, backend: str | None = None, threads: int | None = None
) -> NDArray[np.float32]:
    """Embeddings (texts, width), float32; a blank text's row is NaN.

    Raises what opening the model raises, and RequestError for a model that gives none.
    """
    rows = rows_of(texts)
    with closing(open_encoder(ref, backend=backend, threads=threads, sample=texts[:SAMPLE])) as encoder:
        refuse_others(encoder.about)
        found = np.full((len(rows), encoder.about.width), np.nan, np.float32)
        for at, (_, _, output) in enumerate(stream.run(encoder, rows)):
            if output is not None:
                found[at] = output
    return found


def rows_of(texts: Sequence[str]) -> list[Row]:
    """Raises RequestError for one text in place of several, which would be read letter by letter."""
    if isinstance(texts, str):
        raise RequestError("a list of texts is wanted, and one text is given", hint="write [text]")
    return [Row(text, line=at) for at, text in enumerate(texts, 1)]
