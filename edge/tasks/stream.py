"""Texts through an encoder: batches of like length, results in the order of the input, memory that does not grow.

A window of rows is tokenized at once, sorted by length and cut into batches; while it runs, the next window is read and
tokenized. No more than two windows are held, so an endless input takes no more memory than a long one.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from edge.errors import BadData, EdgeError, PromptTooLong, RequestError
from edge.tasks.encoder import Array, Encoder, Tokens
from edge.tasks.rows import Row

T = TypeVar("T")

FIRST = 32  # rows, twice as many from window to window: the first results come soon
CHARACTERS = 1 << 22  # of a window, however few rows they are
BATCH_TOKENS, BATCH_ROWS = 512, 64  # of a batch, padding included; 256 to 1,024 tokens are equally fast
PAUSE = 0.05  # seconds after which a window that waits for its next line goes without it
AHEAD = 64  # rows that are read from a slow source before they are asked for
REACH = 16  # characters a token that a window of a long text is looked for in


@dataclass(frozen=True, slots=True)
class Part:
    """A text, or a window of a long one that begins at character `offset`, and what the encoder gave for it."""

    offset: int
    tokens: Tokens
    output: Array


def run(
    encoder: Encoder, rows: Iterable[Row], *, spans: bool = False, live: bool = False
) -> Iterator[tuple[Row, Tokens | None, Array | None]]:
    """Each row with its tokens and the encoder's output, in the order of the input; None and None for a blank text."""
    for row, parts in run_parts(encoder, rows, spans=spans, live=live):
        yield (row, parts[0].tokens, parts[0].output) if parts else (row, None, None)


def run_parts(
    encoder: Encoder,
    rows: Iterable[Row],
    *,
    spans: bool = False,
    split: bool = False,
    live: bool = False,
) -> Generator[tuple[Row, tuple[Part, ...]], None, None]:
    """Each row with its parts: one, none for a blank text, or with `split` as many windows as a long text needs.

    `live` is for rows that come slowly: what is there is not held back until a window is full. Ending the iteration,
    by whatever means, stops the threads after their batch.
    """
    stop = threading.Event()
    windows = gathered(ticking(rows, stop) if live else rows, encoder.about.window)
    running: deque[Window] = deque()
    pool = ThreadPoolExecutor(encoder.about.workers, thread_name_prefix="encode")
    try:
        for window in windows:
            if window:
                running.append(Window(encoder, pool, window, spans, split))
            while running and (len(running) > 1 or not window):
                yield from running.popleft().results()
        while running:
            yield from running.popleft().results()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


class Window:
    """Rows on their way through the encoder."""

    def __init__(
        self, encoder: Encoder, pool: ThreadPoolExecutor, rows: Sequence[Row], spans: bool, split: bool
    ) -> None:
        self.rows = rows
        self.places, self.offsets, self.tokens = tokenized(encoder, rows, spans, split)
        self.futures: list[tuple[list[int], Future[list[Array]]]] = [
            (batch, pool.submit(encoder.run, [self.tokens[at] for at in batch]))
            for batch in batches([len(each.ids) for each in self.tokens])
        ]

    def results(self) -> Iterator[tuple[Row, tuple[Part, ...]]]:
        """Rows with their parts, once all of the window is done. Raises what the encoder raised."""
        outputs: dict[int, Array] = {}
        for batch, future in self.futures:
            outputs.update(zip(batch, future.result(), strict=True))
        parts: list[list[Part]] = [[] for _ in self.rows]
        for at, (place, offset) in enumerate(zip(self.places, self.offsets, strict=True)):
            parts[place].append(Part(offset, self.tokens[at], outputs[at]))
        yield from zip(self.rows, map(tuple, parts), strict=True)


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Positions of texts in batches of like length, the longest first; none beyond the budget when padded."""
    batch: list[int] = []
    for at in sorted(range(len(lengths)), key=lambda at: -lengths[at]):
        if batch and (len(batch) == BATCH_ROWS or (len(batch) + 1) * lengths[batch[0]] > BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(at)
    if batch:
        yield batch


def tokenized(
    encoder: Encoder, rows: Sequence[Row], spans: bool, split: bool
) -> tuple[list[int], list[int], list[Tokens]]:
    """For each part of the rows that are not blank: its row's position, where it begins, its tokens."""
    full = [at for at, row in enumerate(rows) if row.text.strip()]
    texts = [rows[at].text for at in full]
    pairs = [rows[at].pair or "" for at in full] if any(rows[at].pair is not None for at in full) else None
    if not texts:
        return [], [], []
    try:
        tokens = encoder.tokenize(texts, pairs, spans=spans)
    except PromptTooLong:
        for at in full:
            try:
                encoder.tokenize([rows[at].text])
            except PromptTooLong as error:
                raise BadData(f"line {rows[at].line}: {error}", hint="shorten it") from None
        raise
    if not split:
        return full, [0] * len(full), tokens
    if pairs is not None:
        raise RequestError("pairs of texts are not read in windows", hint="leave --long split out")
    places: list[int] = []
    offsets: list[int] = []
    parts: list[Tokens] = []
    for at, text, whole in zip(full, texts, tokens, strict=True):
        for offset, part in windows_of(encoder, text) if whole.left_out else ((0, whole),):
            places.append(at)
            offsets.append(offset)
            parts.append(part)
    return places, offsets, parts


def windows_of(encoder: Encoder, text: str) -> Iterator[tuple[int, Tokens]]:
    """Windows that cover a text, each a quarter over the one before, with the characters they begin at.

    Only the next few characters are tokenized for each, so a long text takes no more than its length.
    """
    offset = 0
    reach = REACH * encoder.about.max_tokens
    while True:
        ahead = text[offset : offset + reach]
        ends = offset + len(ahead) >= len(text)
        if not ends:  # rather a word less than half a word
            ahead = ahead[: max(ahead.rfind(" "), 0)] or ahead
        (tokens,) = encoder.tokenize([ahead], spans=True)
        if not tokens.spans:
            raise RequestError(
                f"{encoder.about.backend} does not say where a token begins", hint="leave --long split out"
            )
        yield offset, tokens
        spans = [(start, end) for start, end in tokens.spans if end > start]
        if not spans or (ends and not tokens.left_out):
            return
        late = [start for start, _ in spans[len(spans) * 3 // 4 :]]
        step = next((start for start in late if start and ahead[start - 1].isspace()), late[0])
        offset += step or spans[-1][1]


def gathered(rows: Iterable[Row | None], most: int) -> Iterator[list[Row]]:
    """Rows in windows that grow from FIRST to `most`, and an empty one where what runs is not to be waited for.

    That is where None stands among the rows, and before an error of theirs: what stood before it comes out.
    """
    size, window, held = min(FIRST, most), list[Row](), 0
    try:
        for row in rows:
            if row is not None:
                window.append(row)
                held += len(row.text)
                if len(window) < size and held < CHARACTERS:
                    continue
                size = min(2 * size, most)
            if window:
                yield window
            if row is None:
                yield []
            window, held = [], 0
    except EdgeError:
        yield window
        yield []
        raise
    if window:
        yield window


def ticking(rows: Iterable[T], stop: threading.Event) -> Iterator[T | None]:
    """The rows, read in a thread of their own; None whenever the next is not there after PAUSE."""
    arrived: queue.Queue[T | BaseException | None] = queue.Queue(AHEAD)

    def put(item: T | BaseException | None) -> None:
        while not stop.is_set():
            with suppress(queue.Full):
                return arrived.put(item, timeout=0.2)

    def pump() -> None:
        try:
            for row in rows:
                put(row)
                if stop.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)

    threading.Thread(target=pump, name="read", daemon=True).start()
    waited = False
    while True:
        try:
            # once nothing came, all that was there is on its way, and there is nothing to do but to wait
            item = arrived.get(timeout=None if waited else PAUSE)
        except queue.Empty:
            waited = True
            yield None
            continue
        waited = False
        if item is None:
            return
        if isinstance(item, BaseException):
            raise item
        yield item
