"""A file or stdin as lines of text with their numbers: UTF-8 or an error that names the line."""

from __future__ import annotations

import codecs
import io
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISREG
from typing import Any, BinaryIO

from edge.errors import BadData, RequestError

LONGEST = 1 << 26  # bytes of a line; what has no line breaks is not read whole
BETWEEN = re.compile(r"[\s,]*")  # elements of a list


class Source:
    """Lines of a stream with their numbers, counted from 1 on; `done` of `size` bytes are read (0 is not known)."""

    def __init__(self, stream: BinaryIO, name: str, size: int = 0, live: bool = True) -> None:
        self.stream, self.name, self.size, self.done = stream, name, size, 0
        self.suffix = Path(name).suffix.lower()
        self.live = live  # lines may come slowly, and what there is should not wait for them
        self.number = 0

    def __iter__(self) -> Iterator[tuple[int, str]]:
        """Lines with their ends. Raises BadData for one that is no UTF-8 or longer than 64 MiB."""
        while line := self.stream.readline(LONGEST + 1):
            self.number += 1
            self.done += len(line)
            if len(line) > LONGEST:
                raise BadData(f"{self.name}: line {self.number} is longer than 64 MiB", hint="divide it")
            if self.number == 1:
                line = self.without_mark(line)
            try:
                yield self.number, line.decode()
            except UnicodeDecodeError as error:
                raise BadData(
                    f"{self.name}: line {self.number} is no UTF-8: byte 0x{line[error.start]:02x} at {error.start + 1}",
                    hint="convert the file, for example with iconv -f latin1 -t utf-8",
                ) from None

    def without_mark(self, line: bytes) -> bytes:
        """The first line without a byte order mark."""
        if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise BadData(f"{self.name} is UTF-16", hint="convert it with iconv -f utf-16 -t utf-8")
        return line.removeprefix(codecs.BOM_UTF8)

    def values(self) -> Iterator[tuple[int, Any]]:
        """JSON values with the lines they begin on: one a line, or those of one list."""
        lines = iter(self)
        for number, line in lines:
            if not line.strip():
                continue
            if line.lstrip().startswith("["):
                yield from self.elements(number, line.lstrip()[1:], lines)
                return
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise self.no_json(number, error) from None

    def elements(self, number: int, held: str, lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, Any]]:
        """The elements of a list that was opened; not much more than one of them is held."""
        decoder, at, tried = json.JSONDecoder(), 0, 0
        complete = False
        while True:
            begins = BETWEEN.match(held, at).end()  # type: ignore[union-attr]  # matches nothing, too
            number += held.count("\n", at, begins)
            at = begins
            if held.startswith("]", at):
                return
            if complete and at == len(held):
                raise BadData(
                    f"{self.name}: line {number} is no JSON: its list has no end", hint="end it with ]"
                )
            error: Exception = ValueError()
            if len(held) - at > 2 * tried or complete:  # longer ones are tried as often as they double
                try:
                    value, end = decoder.raw_decode(held, at)
                except (ValueError, RecursionError) as cause:
                    error, tried = cause, len(held) - at
                else:
                    yield number, value
                    number += held.count("\n", at, end)
                    at, tried = end, 0
                    continue
            if complete or tried > LONGEST:
                raise self.no_json(number, error) from None
            more = next(lines, (0, ""))[1]
            held, at, complete = held[at:] + more, 0, not more

    def no_json(self, number: int, error: Exception) -> BadData:
        what = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deep or without an end"
        return BadData(f"{self.name}: line {number} is no JSON: {what}", hint="write an object a line")


@contextmanager
def opened(path: Path | None) -> Iterator[Source]:
    """A file's lines, or stdin's for None or `-`. Raises RequestError where there is no such file."""
    name = "stdin" if path is None or str(path) == "-" else str(path)
    try:
        # a buffer of our own: a thread that still waits in sys.stdin's would abort the interpreter's exit
        raw = io.FileIO(0, closefd=False) if name == "stdin" else io.FileIO(name)
    except OSError as error:
        raise RequestError(f"{name} cannot be read: {error.strerror}", hint="give another --input") from error
    try:
        state = os.fstat(raw.fileno())
        regular = S_ISREG(state.st_mode)
        yield Source(io.BufferedReader(raw), name, state.st_size if regular else 0, live=not regular)
    finally:
        raw.close()  # not the buffer, which a thread that waits for a line has locked
