"""A SentencePiece model file, read without the protobuf package.

The format is sentencepiece_model.proto (github.com/google/sentencepiece, src/) in protobuf's wire format
(protobuf.dev/programming-guides/encoding): a field is a varint of number × 8 + kind, then its value. Only the
fields that a GGUF file has a place for are read.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from edge.errors import ConversionError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
UNIGRAM, BPE = 1, 2  # TrainerSpec.ModelType
TRAINER_IDS = {40: "unk", 41: "bos", 42: "eos", 43: "pad"}  # TrainerSpec's fields
KINDS = range(1, 7)  # SentencePiece.Type: normal, unknown, control, user-defined, unused, byte


@dataclass(frozen=True)
class Model:
    """The pieces in the order of their ids, and how text is normalized before."""

    pieces: tuple[str, ...]
    scores: tuple[float, ...]
    kinds: tuple[int, ...]  # numbered as GGUF numbers token types
    model_type: int
    charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    specials: dict[str, int]  # unk, bos, eos and pad, those it has
    raw: bytes  # the file, for the library that gives the reference ids


def parse(data: bytes, name: str) -> Model:
    """Raises ConversionError where the file breaks the format."""
    try:
        return _model(data)
    except (ValueError, IndexError, struct.error, TypeError, OverflowError) as error:
        raise ConversionError(
            f"{name} is not a SentencePiece model: {error}", hint="download the checkpoint again"
        ) from error


def _model(data: bytes) -> Model:
    pieces, scores, kinds = [], [], []
    # the defaults of the .proto
    model_type, charsmap, prefix, remove = UNIGRAM, b"", True, True
    specials = {"unk": 0, "bos": 1, "eos": 2, "pad": -1}
    for number, value in _fields(data):
        if number == 1:
            text, score, kind = _piece(_bytes(value))
            pieces.append(text)
            scores.append(score)
            kinds.append(kind)
        elif number == 2:
            for inner, setting in _fields(_bytes(value)):
                if inner == 3:
                    model_type = _int(setting)
                elif inner in TRAINER_IDS:
                    specials[TRAINER_IDS[inner]] = _int(setting)  # −1, for none, reads as 2⁶⁴ − 1
        elif number == 3:
            for inner, setting in _fields(_bytes(value)):
                if inner == 2:
                    charsmap = _bytes(setting)
                elif inner == 3:
                    prefix = bool(_int(setting))
                elif inner == 4:
                    remove = bool(_int(setting))
    if not pieces:
        raise ValueError("it holds no pieces")
    present = {which: index for which, index in specials.items() if 0 <= index < len(pieces)}
    return Model(
        tuple(pieces), tuple(scores), tuple(kinds), model_type, charsmap, prefix, remove, present, data
    )


def _piece(data: bytes) -> tuple[str, float, int]:
    text, score, kind = "", 0.0, 1
    for number, value in _fields(data):
        if number == 1:
            text = _bytes(value).decode("utf-8")
        elif number == 2:
            (score,) = struct.unpack("<f", _bytes(value))
        elif number == 3:
            kind = _int(value)
    if kind not in KINDS or not math.isfinite(score):
        raise ValueError(f"piece {text!r} has type {kind} and score {score}")
    return text, score, kind


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The number and value of each field; never looks past the end."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == BYTES:
            size, at = _varint(data, at)
        elif kind in (FIXED32, FIXED64):
            size = 4 if kind == FIXED32 else 8
        else:
            raise ValueError(f"unknown wire type {kind} at byte {at}")
        if size > len(data) - at:
            raise ValueError(f"a field at byte {at} runs past the end")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("it ends within a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError(f"a number at byte {at} has no end")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number stands where bytes should")
    return value


def _int(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise ValueError("bytes stand where a number should")
    return value
