"""What ONNX Runtime computes for a folder, of texts in tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import BadONNX, ConversionError, EngineError
from edge.onnx.session import Session

from ..computed import Outputs
from .emit import MASK
from .model import EMBEDDING, HIDDEN, IDS, LOGITS, TYPES

Array = NDArray[Any]
Text = tuple[Sequence[int], Sequence[int]]  # ids and token types (tokens,)
TOGETHER = 16  # texts at once


@dataclass(frozen=True)
class Result:
    """Of one text, without padding; None where the graph has no such output."""

    hidden: Array | None
    logits: Array | None
    pooled: Array | None


def session(path: Path) -> Session:
    """The graph, opened as `edge` opens any. Raises ConversionError where it does not."""
    try:
        return Session(path)
    except (BadONNX, EngineError) as error:
        raise ConversionError(str(error), hint=error.hint) from None


def run(session: Session, texts: Sequence[Text]) -> list[Result]:
    """Texts padded to the longest. Raises ConversionError where it fails, and for NaN or infinity."""
    shape = (len(texts), max(len(ids) for ids, _ in texts))
    feed = {name: np.zeros(shape, np.int64) for name in (IDS, MASK, TYPES)}
    for row, (ids, types) in enumerate(texts):
        feed[IDS][row, : len(ids)], feed[TYPES][row, : len(ids)], feed[MASK][row, : len(ids)] = ids, types, 1
    names = [entry.name for entry in session.graph.outputs]
    try:
        values = session.run({entry.name: feed[entry.name] for entry in session.graph.inputs}, names)
    except EngineError as error:
        raise ConversionError(str(error), hint="this is a bug") from None
    found = dict(zip(names, values, strict=True))
    if not all(np.isfinite(array).all() for array in values):
        raise ConversionError("ONNX Runtime computes NaN or infinity for it", hint="leave that level out")

    def of(name: str, row: int) -> Array | None:
        if name not in found:
            return None
        mine: Array = found[name][row]
        return mine[: len(texts[row][0])] if mine.ndim == 2 else mine

    return [Result(of(HIDDEN, row), of(LOGITS, row), of(EMBEDDING, row)) for row in range(len(texts))]


def answers(session: Session, texts: Sequence[Text]) -> list[Array]:
    """Logits or embeddings, hidden states where there are neither: texts of a length together, their order kept."""
    found: list[Array] = [np.empty(0)] * len(texts)
    order = sorted(range(len(texts)), key=lambda row: len(texts[row][0]))
    for start in range(0, len(order), TOGETHER):
        rows = order[start : start + TOGETHER]
        for row, result in zip(rows, run(session, [texts[row] for row in rows]), strict=True):
            given = (result.logits, result.pooled, result.hidden)
            found[row] = next(array for array in given if array is not None)
    return found


def together(results: Sequence[Result]) -> Outputs:
    """Of several texts, one after the other, as comparisons take them."""

    def of(name: str) -> Array | None:
        arrays = [getattr(result, name) for result in results]
        return None if arrays[0] is None else np.concatenate([np.atleast_2d(array) for array in arrays])

    hidden = of("hidden")
    return Outputs(np.empty((0, 0)) if hidden is None else hidden, of("logits"), of("pooled"))
