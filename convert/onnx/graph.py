"""A graph of ONNX nodes whose weights are made one at a time while the file is written.

A ModelProto in memory would hold every weight twice. Here the initializers are declared by shape and type, so that
the lengths protobuf puts before its messages are known before the first weight is read, and the weights stream
(protobuf's encoding: https://protobuf.dev/programming-guides/encoding; field numbers from onnx.proto).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from edge.errors import ConversionError
from edge.onnx_folder import DATA

from .values import TOGETHER, Handle

Array = NDArray[Any]

# Opset 20 is the first with Gelu; ONNX Runtime reads it since 1.17. com.microsoft has its fused operators.
OPSETS = {"": 20, "com.microsoft": 1}
IR_VERSION = 9  # the one of opset 20
MICROSOFT = "com.microsoft"
LARGEST = (1 << 31) - (
    1 << 24
)  # bytes of weights in a model.onnx: protobuf ends at 2 GiB, the nodes take some
ALIGNMENT = 4096  # of each tensor in model.onnx.data, so that it can be mapped (ONNX's external data)
SAID = 16  # elements of a constant that its name gives; `edge` reads no names beyond 4 KiB
SMALL = 1024  # bytes of a tensor that stays in model.onnx: what shapes depend on has to be there

GRAPH_OF_MODEL, INITIALIZER_OF_GRAPH, RAW_DATA_OF_TENSOR = 7, 5, 9


@dataclass(frozen=True)
class Constant:
    """An initializer that is to be written."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@dataclass(frozen=True)
class Group:
    """Initializers that are made together, out of one tensor of the checkpoint."""

    constants: tuple[Constant, ...]
    make: Callable[[], Sequence[Array]]


@dataclass
class Graph:
    """Nodes in the order they run; `types` says of each weight how it is kept, `elements` how many are."""

    name: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    outputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    groups: dict[str, Group] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    elements: dict[str, int] = field(default_factory=dict)
    shared: dict[str, list[str]] = field(default_factory=dict)
    count: int = 0

    def node(
        self,
        kind: str,
        inputs: Sequence[str],
        *,
        outputs: int | Sequence[str] = 1,
        domain: str = "",
        **attributes: Any,
    ) -> list[str]:
        """Add a node; the names of its outputs, new ones unless given. "" leaves out an optional one."""
        if isinstance(outputs, int):
            outputs = [
                f"{kind}_{self.count}" if not at else f"{kind}_{self.count}_{at}" for at in range(outputs)
            ]
        name = f"{kind}_{self.count}"
        self.count += 1
        given = list(inputs)
        while given and not given[-1]:
            given.pop()
        self.nodes.append(
            helper.make_node(kind, given, list(outputs), name=name, domain=domain, **attributes)
        )
        return list(outputs)

    def once(self, key: str, make: Callable[[], list[str]]) -> list[str]:
        """The names that `make` gives, which is called once for a key."""
        if key not in self.shared:
            self.shared[key] = make()
        return self.shared[key]

    def weight(
        self, key: str, parts: Sequence[tuple[str, Any, tuple[int, ...]]], make: Callable[[], Sequence[Array]]
    ) -> list[str]:
        """Initializers (suffix, dtype, shape) that `make` computes; made once for a key. Their names."""
        if key not in self.groups:
            constants = (Constant(f"{key}{suffix}", np.dtype(kind), shape) for suffix, kind, shape in parts)
            self.groups[key] = Group(tuple(constants), make)
        return [constant.name for constant in self.groups[key].constants]

    def constant(self, value: Any, dtype: Any) -> str:
        """A small initializer by its value."""
        array = np.asarray(value, dtype)
        said = str(array.tolist()) if array.size <= SAID else sha256(array.tobytes()).hexdigest()
        key = f"constant {array.dtype} {array.shape} {said}"
        return self.weight(key, [("", array.dtype, array.shape)], lambda: [array])[0]

    def kept(self, handle: Handle, how: str) -> None:
        """Note how a weight is kept; of several in one, of each."""
        self.elements[handle.name] = int(np.prod(handle.shape, dtype=np.int64))
        for name in handle.name.split(TOGETHER):
            self.types.setdefault(name, how)

    @property
    def bits_per_weight(self) -> float:
        """Bits of all that is kept, such as scales, over the weights."""
        return 8 * self.weight_bytes / sum(self.elements.values())

    @property
    def weight_bytes(self) -> int:
        return sum(constant.bytes for group in self.groups.values() for constant in group.constants)


@dataclass(frozen=True)
class Placed:
    """A constant with the bytes that stand before its values; `outside`: the values are in model.onnx.data."""

    constant: Constant
    head: bytes
    outside: bool

    @property
    def length(self) -> int:
        """Bytes of its message in model.onnx."""
        raw = prefix(RAW_DATA_OF_TENSOR, self.constant.bytes)
        return len(self.head) + (0 if self.outside else len(raw) + self.constant.bytes)


def write(
    graph: Graph,
    path: Path,
    *,
    largest: int = LARGEST,
    progress: Callable[[int], None] = lambda bytes: None,
) -> tuple[Path, ...]:
    """Write the graph to `path`; beyond `largest` bytes of weights, these into model.onnx.data beside it. The files.

    `progress` is told the bytes of every weight that is written. The files are synced.
    """
    placed = places(graph, external=graph.weight_bytes > largest)
    opsets = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
    model = onnx.ModelProto(ir_version=IR_VERSION, producer_name="edge", opset_import=opsets)
    nodes = onnx.GraphProto(name=graph.name, node=graph.nodes, input=graph.inputs, output=graph.outputs)
    start = nodes.SerializeToString()
    whole = len(start) + sum(
        len(prefix(INITIALIZER_OF_GRAPH, one.length)) + one.length for one in placed.values()
    )
    files = [path]
    with ExitStack() as opened:
        file = data = opened.enter_context(path.open("wb"))
        if any(one.outside for one in placed.values()):
            files.append(path.parent / DATA)
            data = opened.enter_context(files[1].open("wb"))
        file.write(model.SerializeToString() + prefix(GRAPH_OF_MODEL, whole) + start)
        for group in graph.groups.values():
            for constant, array in zip(group.constants, group.make(), strict=True):
                if array.dtype != constant.dtype or array.shape != constant.shape:
                    raise ConversionError(f"{constant.name} became {array.dtype} {array.shape}, a bug")
                one = placed[constant.name]
                file.write(prefix(INITIALIZER_OF_GRAPH, one.length) + one.head)
                if one.outside:
                    data.seek(aligned(data.tell()))
                else:
                    file.write(prefix(RAW_DATA_OF_TENSOR, constant.bytes))
                (data if one.outside else file).write(np.ascontiguousarray(array).data)
                progress(constant.bytes)
        for each in {file, data}:
            each.flush()
            os.fsync(each.fileno())
    return tuple(files)


def places(graph: Graph, *, external: bool) -> dict[str, Placed]:
    """Where every constant goes, by its name, in the order of writing."""
    found, offset = {}, 0
    for group in graph.groups.values():
        for constant in group.constants:
            outside = external and constant.bytes > SMALL
            kind = helper.np_dtype_to_tensor_dtype(constant.dtype)
            head = onnx.TensorProto(name=constant.name, dims=constant.shape, data_type=kind)
            if outside:
                offset = aligned(offset)
                head.data_location = onnx.TensorProto.EXTERNAL
                for key, value in (("location", DATA), ("offset", offset), ("length", constant.bytes)):
                    head.external_data.add(key=key, value=str(value))
                offset += constant.bytes
            found[constant.name] = Placed(constant, head.SerializeToString(), outside)
    return found


def aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def prefix(field: int, length: int) -> bytes:
    """What protobuf puts before a message or bytes: the field's number and the length, seven bits a byte."""
    written = bytearray([field << 3 | 2])
    while length > 127:
        written.append(length & 127 | 128)
        length >>= 7
    return bytes([*written, length])
