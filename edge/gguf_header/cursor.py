"""A place in the mapped header that cannot leave it."""

from __future__ import annotations

import mmap
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge.errors import BadGGUF, ModelNotFound, StoreError
from edge.gguf_header.header import bad
from edge.gguf_header.tables import MAX_HEADER, MAX_STRINGS

U32, U64 = struct.Struct("<I"), struct.Struct("<Q")


class Cursor:
    """A place in the mapped header; moving it past the end raises BadGGUF."""

    def __init__(self, data: mmap.mmap, file_bytes: int) -> None:
        self.data, self.file_bytes = data, file_bytes
        self.at = self.strings = 0

    def claim(self, count: int, what: str) -> int:
        """Step over `count` bytes that must be there; returns where they begin."""
        start, end = self.at, self.at + count
        if end > len(self.data):
            if end > self.file_bytes:
                raise bad(f"{what} ends at byte {end} and the file has {self.file_bytes}")
            raise bad(f"{what} ends at byte {end}; a header may have {MAX_HEADER}")
        self.at = end
        return start

    def number(self, kind: struct.Struct, what: str) -> Any:
        return kind.unpack_from(self.data, self.claim(kind.size, what))[0]

    def blob(self, what: str, limit: int = MAX_HEADER) -> bytes:
        length = self.number(U64, what)
        if length > limit and self.at + length <= self.file_bytes:
            raise bad(f"{what} has {length} bytes; {limit} is the limit")
        start = self.claim(length, what)
        return self.data[start : self.at]

    def text(self, what: str, limit: int = MAX_HEADER) -> str:
        try:
            return self.blob(what, limit).decode()
        except UnicodeDecodeError as error:
            raise bad(f"{what} is not UTF-8 at its byte {error.start}") from None

    def step_over_strings(self, count: int, what: str) -> None:
        """The one loop that takes time: a vocabulary is hundreds of thousands of strings.

        A length that leads past the end fails in the next `unpack_from`, so the loop checks nothing itself.
        """
        self.strings += count
        if self.strings > MAX_STRINGS:
            raise bad(f"{what} brings the strings in arrays to {self.strings}; {MAX_STRINGS} is the limit")
        unpack, data, at = U64.unpack_from, self.data, self.at
        try:
            for _ in range(count):
                at += unpack(data, at)[0] + 8
        except (struct.error, OverflowError):
            at += 8
        self.claim(at - self.at, what)


@contextmanager
def opened(path: Path) -> Iterator[Cursor]:
    """A cursor at the start of the mapped header; refusals raised within gain the file's name."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):  # opening a pipe would wait for its writer
            what = "a folder" if stat.S_ISDIR(mode) else "no regular file"
            raise StoreError(f"{path} is {what}, not a GGUF file")
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if not size:
                raise bad("it is empty")
            with mmap.mmap(file.fileno(), min(size, MAX_HEADER), access=mmap.ACCESS_READ) as data:
                yield Cursor(data, size)
    except BadGGUF as error:
        raise BadGGUF(f"{path.name}: {error}", hint=error.hint) from None
    except (FileNotFoundError, NotADirectoryError):
        raise ModelNotFound(f"{path} does not exist", hint="`edge list` names the models kept here") from None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from None
