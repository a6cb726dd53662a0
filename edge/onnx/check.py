"""What an ONNX file has to pass before ONNX Runtime opens it: its operators, its sizes, where its weights lie.

The fields' numbers are those of onnx.proto (github.com/onnx/onnx).
"""

from __future__ import annotations

import math
import mmap
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast

from edge.errors import BadONNX, ModelNotFound, StoreError
from edge.onnx.wire import LENGTH, Span, Wire, bad

DOMAINS = ("", "com.microsoft")  # the standard's operators and ONNX Runtime's own
BARRED = {
    "EPContext": "which names a file of an accelerator's",
    "Loop": "which need not end, and Ctrl-C does not reach it",
}
PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=,@ ()-]{0,199}")
MOST_ELEMENTS = 1 << 40
MOST_AXES = 64  # of a weight; NumPy's limit, too
MOST_METADATA = 16 << 20  # bytes
DEEPEST = 16  # subgraphs in subgraphs
LEAST_IR = 3  # onnx.proto: the first with opset_import
# TensorProto.DataType → bits of an element; text (8) has none
BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128,
    16: 16, 17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2,
}  # fmt: skip
TEXT = 8
TYPES = {1: "float32", 6: "int32", 7: "int64", 9: "bool", 10: "float16"}  # what models of text take and give
LOOK = "take a file from whom you trust"


@dataclass(frozen=True)
class Value:
    """An input or output: `type` as NumPy calls it (empty: another kind), a dimension None where it is free.

    `shape` is None where the file does not say it.
    """

    name: str
    type: str
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True)
class Graph:
    """What a checked file takes and gives; `data` are the files beside it that hold weights."""

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    data: tuple[Path, ...]


@dataclass
class Check:
    """One file under way."""

    wire: Wire
    folder: Path
    data: dict[str, int] = field(default_factory=dict)  # name → bytes of a file beside it


def check(path: Path) -> Graph:
    """Read the structure of an ONNX file and refuse what is not to be opened; weights are stepped over.

    Raises BadONNX for one that is damaged, has operators that ONNX Runtime does not know by itself, functions of its
    own, or weights outside of plain files beside it (links, also hard ones, `..`, other folders, beyond their end);
    ModelNotFound when there is none, StoreError when it cannot be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its writer
            raise bad("it is no regular file", LOOK)
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if not size:
                raise bad("it is empty")
            with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as data:
                look_like_onnx(data[:64])
                found = Check(Wire(cast(bytes, data)), path.parent)
                return model(found, (0, size))
    except BadONNX as error:
        raise BadONNX(f"{path.name}: {error}", hint=error.hint) from None
    except (FileNotFoundError, NotADirectoryError):
        raise ModelNotFound(f"{path} does not exist", hint="check the path") from None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from None


def look_like_onnx(head: bytes) -> None:
    """Raise BadONNX for what often bears the name and is something else."""
    if head.startswith(b"version https://git-lfs"):
        raise bad("it is a Git-LFS pointer, not a model", "run `git lfs pull`, or download the file itself")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"{")):
        raise bad("it is a page or a message of a server, not a model")


def model(found: Check, span: Span) -> Graph:
    graphs: list[Span] = []
    version, metadata, imports = 0, 0, 0
    for number, kind, value, place in found.wire.fields(span, "the model"):
        if number == 1:
            version = value
        elif number == 7 and kind == LENGTH:
            graphs.append(place)
        elif number == 8:
            imports += 1
        elif number == 14:
            metadata += place[1] - place[0]
        elif number == 20:
            raise bad("it carries a training graph", "export it for inference")
        elif number == 25:
            raise bad("it defines operators of its own (local functions)", "export it without functions")
    if not graphs or not imports or version < LEAST_IR:
        raise bad("it is no ONNX model: graph, operator set or version is missing")
    if len(graphs) > 1:
        raise bad("it has two graphs")
    if metadata > MOST_METADATA:
        raise bad(f"it has {metadata:,} bytes of metadata; {MOST_METADATA:,} is the limit")
    inputs, outputs = graph(found, graphs[0], 0)
    return Graph(inputs, outputs, tuple(found.folder / name for name in found.data))


def graph(found: Check, span: Span, depth: int) -> tuple[tuple[Value, ...], tuple[Value, ...]]:
    """Inputs, without those that have a weight's value, and outputs."""
    if depth > DEEPEST:
        raise bad(f"it has subgraphs more than {DEEPEST} deep")
    inputs, outputs, weights = [], [], set()
    for number, kind, _, place in found.wire.fields(span, "the graph"):
        if number in (1, 5, 11, 12, 15) and kind != LENGTH:
            raise bad("the graph is no protobuf message")
        if number == 1:
            node(found, place, depth)
        elif number == 5:
            weights.add(tensor(found, place))
        elif number == 11:
            inputs.append(value_of(found, place))
        elif number == 12:
            outputs.append(value_of(found, place))
        elif number == 15:
            raise bad("it has sparse weights", "export it with dense ones")
    return tuple(value for value in inputs if value.name not in weights), tuple(outputs)


def node(found: Check, span: Span, depth: int) -> None:
    wire, operator, domain, inner = found.wire, "", "", []
    for number, kind, _, place in wire.fields(span, "a node"):
        if number == 4:
            operator = wire.text(kind, place, "a node")
        elif number == 7:
            domain = wire.text(kind, place, "a node")
        elif number == 5:
            inner.append((kind, place))
    domain = "" if domain == "ai.onnx" else domain
    if domain not in DOMAINS:
        raise bad(
            f"it needs the operator {operator[:60]} of {domain[:60]!r}, which is not ONNX Runtime's own",
            "export it with standard operators",
        )
    if operator in BARRED:
        raise bad(f"it needs the operator {operator}, {BARRED[operator]}", "export it with other operators")
    if (domain, operator) not in operators():
        raise bad(
            f"it needs the operator {operator[:60]!r}, which this ONNX Runtime does not know",
            "export it with standard operators, or try a newer onnxruntime",
        )
    for kind, place in inner:
        if kind != LENGTH:
            raise bad("a node is no protobuf message")
        attribute(found, place, depth)


def attribute(found: Check, span: Span, depth: int) -> None:
    for number, kind, _, place in found.wire.fields(span, "an attribute"):
        if number in (5, 10, 6, 11, 22, 23) and kind != LENGTH:
            raise bad("an attribute is no protobuf message")
        if number in (5, 10):
            tensor(found, place)
        elif number in (6, 11):
            graph(found, place, depth + 1)
        elif number in (22, 23):
            raise bad("it has sparse weights", "export it with dense ones")


def tensor(found: Check, span: Span) -> str:
    """A weight's name. Raises BadONNX where its bytes are not what its shape says, or lie where they must not."""
    wire, name, kind_of = found.wire, "", 0
    shape: list[int] = []
    raw: int | None = None
    typed, external, entries = 0, 0, []
    for number, kind, value, place in wire.fields(span, "a weight"):
        if number == 1:
            # the product of a million sizes would take hours
            if len(shape) >= MOST_AXES or place[1] - place[0] > 10 * MOST_AXES:
                raise bad(f"it has a weight of more than {MOST_AXES} axes")
            shape += wire.numbers(kind, value, place, "a weight")
        elif number == 2:
            kind_of = value
        elif number == 3:
            raise bad("it has a weight in segments, which nothing writes")
        elif number == 8:
            name = wire.text(kind, place, "a weight")
        elif number == 9:
            raw = place[1] - place[0]
        elif number in (4, 5, 6, 7, 10, 11):
            typed += place[1] - place[0] or 1  # one number unpacked has at least a byte
        elif number == 13:
            if kind != LENGTH:
                raise bad("a weight is no protobuf message")
            entries.append(place)
        elif number == 14:
            external = value
    what = f"the weight {name[:60]!r}"
    count = math.prod(shape)
    if kind_of not in BITS and kind_of != TEXT:
        raise bad(f"{what} has elements of type {kind_of}, which ONNX does not have")
    if count > MOST_ELEMENTS:  # a negative dimension is 2⁶⁴ less something here
        raise bad(f"{what} has shape {shape[:8]}, which no file holds")
    wanted = -(-count * BITS.get(kind_of, 0) // 8)
    if entries or external:
        if external != 1 or raw is not None or typed or kind_of == TEXT:
            raise bad(f"{what} says in two ways where it lies")
        elsewhere(found, what, dict(entry(wire, place, what) for place in entries), wanted)
    elif raw is not None:
        if raw != wanted or typed:
            raise bad(f"{what} has {raw:,} bytes where its shape {shape[:8]} takes {wanted:,}")
    elif count > 4 * typed:  # the smallest elements: four of two bits in a byte
        raise bad(f"{what} has shape {shape[:8]} and {typed:,} bytes of data")
    return name


def entry(wire: Wire, span: Span, what: str) -> tuple[str, str]:
    """Key and value of a StringStringEntryProto."""
    pair = {1: "", 2: ""}
    for number, kind, _, place in wire.fields(span, what):
        if number in pair:
            pair[number] = wire.text(kind, place, what)
    return pair[1], pair[2]


def elsewhere(found: Check, what: str, said: dict[str, str], wanted: int) -> None:
    """Raise BadONNX unless a weight lies inside a plain file of the same folder that has no other name."""
    name = said.get("location", "")
    if not PLAIN.fullmatch(name):
        raise bad(f"{what} lies in {name[:80]!r}, which is not a plain file beside it", LOOK)
    if name not in found.data:
        found.data[name] = size_of(found.folder / name, what)
    try:
        offset, length = int(said.get("offset") or 0), int(said.get("length") or wanted)
    except ValueError:
        raise bad(f"{what} begins nowhere in {name[:80]}") from None
    if length != wanted:
        raise bad(f"{what} has {length:,} bytes where its shape takes {wanted:,}")
    if offset < 0 or offset + length > found.data[name]:
        raise bad(
            f"{what} ends at byte {offset + length:,} of {name[:80]}, which has {found.data[name]:,}",
            "download that file again",
        )


def size_of(path: Path, what: str) -> int:
    """The bytes of a file of weights."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        raise bad(f"{what} lies in {path.name}, which is missing", "put it beside the model") from None
    if not stat.S_ISREG(status.st_mode):
        raise bad(f"{what} lies in {path.name}, which is a link or no file", "put the file itself there")
    # ONNX Runtime follows a hard link wherever it leads; a name more is one that somebody else gave
    if status.st_nlink > 1:
        raise bad(f"{what} lies in {path.name}, which has a second name (a hard link)", "copy the file")
    return status.st_size


def value_of(found: Check, span: Span) -> Value:
    """A ValueInfoProto."""
    wire, name, kind_of = found.wire, "", 0
    shape: tuple[int | None, ...] | None = None
    for number, kind, _, place in wire.fields(span, "an input"):
        if number == 1:
            name = wire.text(kind, place, "an input")
        elif number == 2:
            for tensor_type in messages(wire, place, 1):
                for inner, _, value, spot in wire.fields(tensor_type, "an input"):
                    if inner == 1:
                        kind_of = value
                    elif inner == 2:
                        shape = tuple(dimension(wire, one) for one in messages(wire, spot, 1))
    return Value(name, TYPES.get(kind_of, ""), shape)


def messages(wire: Wire, span: Span, wanted: int) -> Iterator[Span]:
    """The submessages with one number."""
    for number, kind, _, place in wire.fields(span, "an input"):
        if number == wanted and kind == LENGTH:
            yield place


def dimension(wire: Wire, span: Span) -> int | None:
    """A fixed size, or None: it has a name, or nothing."""
    sizes = [value for number, _, value, _ in wire.fields(span, "an input") if number == 1]
    return sizes[-1] if sizes else None


@cache
def operators() -> frozenset[tuple[str, str]]:
    """(domain, name) of every operator that the installed ONNX Runtime has by itself."""
    from onnxruntime.capi import (  # type: ignore[import-untyped]
        onnxruntime_pybind11_state as runtime,
    )

    schemas: list[Any] = runtime.get_all_operator_schema()
    return frozenset((schema.domain, schema.name) for schema in schemas)
