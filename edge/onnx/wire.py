"""The fields of a protobuf message, walked in the mapped file without copying it or loading a library.

The encoding: protobuf.dev/programming-guides/encoding. onnx.load would take as much memory as the file, twice, and
half a second; this steps over the weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from edge.errors import BadONNX

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
MOST_FIELDS = 1 << 22  # of all messages: what takes Python some seconds; a large model has 10⁵
AGAIN = "download it again, or convert the checkpoint"

Span: TypeAlias = tuple[int, int]  # where a submessage, a text or bytes begin and end


class Wire:
    """A file's bytes, `data`, and how many fields were read of them."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.count = 0

    def fields(self, span: Span, what: str) -> Iterator[tuple[int, int, int, Span]]:
        """(number, wire type, value, span) of each field: the value of a VARINT, the span of the others.

        Raises BadONNX where a field leaves the message or is encoded as no writer does.
        """
        at, end = span
        while at < end:
            self.count += 1
            if self.count > MOST_FIELDS:
                raise bad(f"it has more than {MOST_FIELDS:,} fields")
            tag, at = self.varint(at, end, what)
            number, kind = tag >> 3, tag & 7
            if not 0 < number < 1 << 29:
                raise bad(f"{what} is no protobuf message")
            if kind == VARINT:
                value, at = self.varint(at, end, what)
                yield number, kind, value, (at, at)
                continue
            if kind == LENGTH:
                size, at = self.varint(at, end, what)
            elif kind in (FIXED32, FIXED64):
                size = 4 if kind == FIXED32 else 8
            else:
                raise bad(f"{what} is no protobuf message")
            if size > end - at:
                raise bad(f"{what} is cut off: a field of {size:,} bytes where {end - at:,} are left")
            yield number, kind, 0, (at, at + size)
            at += size

    def varint(self, at: int, end: int, what: str) -> tuple[int, int]:
        """A number and where it ends."""
        value = shift = 0
        while at < end:
            byte = self.data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF, at
            shift += 7
            if shift > 63:
                raise bad(f"{what} is no protobuf message")
        raise bad(f"{what} is cut off")

    def numbers(self, kind: int, value: int, span: Span, what: str) -> list[int]:
        """A repeated integer's values, packed or one of them."""
        if kind == VARINT:
            return [value]
        at, end = span
        found = []
        while at < end:
            one, at = self.varint(at, end, what)
            found.append(one)
            self.count += 1
            if self.count > MOST_FIELDS:
                raise bad(f"it has more than {MOST_FIELDS:,} fields")
        return found

    def text(self, kind: int, span: Span, what: str, limit: int = 1 << 12) -> str:
        """A text of at most `limit` bytes."""
        if kind != LENGTH or span[1] - span[0] > limit:
            raise bad(f"{what} has a text that is none, or of more than {limit:,} bytes")
        try:
            return bytes(self.data[span[0] : span[1]]).decode()
        except UnicodeDecodeError:
            raise bad(f"{what} has a text that is not UTF-8") from None


def bad(what: str, hint: str = AGAIN) -> BadONNX:
    return BadONNX(what, hint=hint)
