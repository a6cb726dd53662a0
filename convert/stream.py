"""Every tensor of a source once, encoded for all files that are to be, a few rows at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from edge.errors import ConversionError

from .drafts import Drafts
from .files import File
from .gguf import Entry, Head
from .quantize import Settings, encode_rows
from .source import Source

# what is done, how much of it, of how much
Report = Callable[[str, int, int], None]


def silent(doing: str, done: int, total: int) -> None:
    """Report to nobody."""


def stream(
    source: Source, files: Sequence[File], folder: Drafts, settings: Settings, report: Report
) -> dict[str, float]:
    """Every tensor of the source once, into all drafts; the seconds that each took."""
    seconds = dict.fromkeys((file.level for file in files), 0.0)
    total = sum(entry.bytes for entry in source.entries)
    done = 0
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(settings.workers))
        finished = folder.steps_done({file.draft: file.head.size for file in files})
        drafts = [stack.enter_context(draft_file(file.draft, file.head)) for file in files]
        for name, values in source.extra.items():
            for file, draft in zip(files, drafts, strict=True):
                put(draft.fileno(), values.tobytes(), file.head.places[name])
        for entry in source.entries:
            if f"tensor {entry.name}" not in finished:
                for file, taken in copied(source, entry, files, drafts, pool, settings):
                    seconds[file.level] += taken
                folder.finish(f"tensor {entry.name}")
            done += entry.bytes
            report("converting", done, total)
        for draft in drafts:
            os.fsync(draft.fileno())
    return seconds


def copied(
    source: Source,
    entry: Entry,
    files: Sequence[File],
    drafts: Sequence[BinaryIO],
    pool: Executor,
    settings: Settings,
) -> Iterator[tuple[File, float]]:
    """One tensor into every draft, a few rows at a time; yields (file, seconds) of each piece."""
    as_is = all(file.entries[entry.name].type == entry.type for file in files)
    importance = settings.importance.get(entry.name)
    row = 0
    for rows in source.chunks(entry.name, settings.max_buffer, as_is):
        encoded: dict[str, NDArray[Any]] = {entry.type if as_is else "F32": rows}  # levels share types
        for file, draft in zip(files, drafts, strict=True):
            started = perf_counter()
            target = file.entries[entry.name]
            if target.type not in encoded:
                try:
                    numbers = np.arange(row, row + len(rows))
                    encoded[target.type] = encode_rows(
                        rows, numbers, entry.shape, target.type, importance, pool, settings.workers
                    )
                except ConversionError as error:
                    raise ConversionError(f"{entry.name}: {error}", hint=error.hint) from None
            data = encoded[target.type].reshape(-1).view(np.uint8).data
            put(draft.fileno(), data, file.head.places[entry.name] + row * target.row_bytes)
            yield file, perf_counter() - started
        row += len(rows)


def draft_file(path: Path, start: Head) -> BinaryIO:
    """A draft of its full length with its head, tensors of an earlier run in it."""
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+b", buffering=0)
    os.ftruncate(file.fileno(), start.size)
    put(file.fileno(), start.data, 0)
    return file


def put(fd: int, data: bytes | memoryview, place: int) -> None:
    """All of `data` at a place: one call writes at most 2 GiB."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(fd, rest, place)
        rest, place = rest[written:], place + written
