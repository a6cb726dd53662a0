"""Rows of prompts out of JSON lines: one that cannot be read stands as its error, and the next is read all the same."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from edge.errors import BadData, EdgeError, RequestError
from edge.tasks.source import LONGEST, Source

PIECE = 1 << 20  # bytes of a line that is not kept

Row = Mapping[str, Any] | EdgeError  # or what is wrong with it


def read(source: Source) -> Iterator[Row]:
    """The rows of JSON lines: an object for each that is not blank, or the error that takes its place.

    No line is held that is longer than 64 MiB. Raises BadData for UTF-16 and for a JSON list, which would be no row at
    all, and RequestError where the source cannot be read.
    """
    number, none_yet = 0, True
    for line in raw_lines(source):
        number += 1
        if number == 1:
            line = source.without_mark(line)
        if not line.strip():
            continue
        if none_yet and line.lstrip().startswith(b"["):
            raise BadData(f"{source.name} is a JSON list", hint="write an object a line, as jq -c '.[]' does")
        none_yet = False
        yield parsed(number, line)


def raw_lines(source: Source) -> Iterator[bytes]:
    """Lines with their ends; one that is too long without most of it."""
    try:
        while line := source.stream.readline(LONGEST + 1):
            source.done += len(line)
            yield line
            rest = len(line) > LONGEST and not line.endswith(b"\n")
            del line
            while rest and (more := source.stream.readline(PIECE)):
                source.done += len(more)
                rest = not more.endswith(b"\n")
    except OSError as error:
        raise RequestError(
            f"{source.name} cannot be read: {error.strerror}", hint="give another --input"
        ) from None


def parsed(number: int, line: bytes) -> Row:
    """The object of a line, or what is wrong with it."""
    if len(line) > LONGEST:
        return BadData(f"line {number} is longer than 64 MiB", hint="divide it")
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return BadData(
            f"line {number} is no UTF-8: byte 0x{line[error.start]:02x} at {error.start + 1}",
            hint="convert the file, for example with iconv -f latin1 -t utf-8",
        )
    except (ValueError, RecursionError) as error:
        what = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deep or without an end"
        return BadData(f"line {number} is no JSON: {what}", hint="write an object a line")
    if not isinstance(value, dict):
        return BadData(f"line {number} is no JSON object", hint='such as {"prompt": "…"}')
    return value
