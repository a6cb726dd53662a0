"""Embeddings of texts, and the .npy file they are kept in."""

from __future__ import annotations

import io
import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from edge.errors import EngineError, RequestError, StoreError
from edge.store.records import name_it
from edge.tasks import stream
from edge.tasks.encoder import About, Array, Encoder
from edge.tasks.rows import Row


@dataclass(frozen=True, slots=True)
class Embedded:
    """A text and its embedding (width,), float32; None for a blank text. `left_out` counts tokens not read."""

    text: str
    embedding: Array | None
    left_out: int = 0


def embed(encoder: Encoder, rows: Iterable[Row], *, live: bool = False) -> Generator[Embedded, None, None]:
    """Each text with its embedding, in order; memory does not grow with their number.

    Raises RequestError for a model that gives none, EngineError where one is not finite.
    """
    refuse_others(encoder.about)
    for row, tokens, output in stream.run(encoder, rows, live=live):
        if tokens is None or output is None:
            yield Embedded(row.text, None)
            continue
        if not np.isfinite(output).all():
            raise EngineError(
                f"{encoder.about.name} gives no number for the text of line {row.line}",
                hint="its weights are damaged: convert it again",
            )
        yield Embedded(row.text, output, tokens.left_out)


def refuse_others(about: About) -> None:
    """Raise RequestError for a model that gives no embeddings, with the verb that it is for."""
    if about.task != "embedding":
        kind = "labels each token" if about.task == "tokens" else "gives labels"
        raise RequestError(
            f"{about.name} {kind}, not embeddings",
            hint=f"`edge classify {about.name}` runs it; embeddings come from a sentence-transformers checkpoint",
        )


class Rows:
    """A .npy file of float32 rows that grows; its header is written last, when their number is known."""

    def __init__(self, file: BinaryIO, width: int) -> None:
        self.file, self.width, self.count = file, width, 0
        file.write(header(0, width))

    def add(self, row: Array | None) -> None:
        """A row (width,); NaN for a text that has none."""
        values = np.full(self.width, np.nan) if row is None else row
        self.file.write(np.ascontiguousarray(values, "<f4").tobytes())
        self.count += 1

    def finish(self) -> None:
        self.file.seek(0)
        self.file.write(header(self.count, self.width))
        self.file.flush()
        os.fsync(self.file.fileno())


def header(count: int, width: int) -> bytes:
    """The header of an array (count, width); NumPy pads it so that the first axis may grow."""
    written = io.BytesIO()
    described = {"descr": "<f4", "fortran_order": False, "shape": (count, width)}
    np.lib.format.write_array_header_1_0(written, described)
    return written.getvalue()


@contextmanager
def npy(path: Path, width: int) -> Iterator[Rows]:
    """A .npy file that has its name only when it is complete. Raises StoreError where it cannot be written."""
    draft = path.with_name(path.name + ".partial")
    try:
        with draft.open("wb") as file:
            rows = Rows(file, width)
            yield rows
            rows.finish()
        name_it(draft, path)
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror or error}", hint="give another --out"
        ) from error
    finally:
        draft.unlink(missing_ok=True)
