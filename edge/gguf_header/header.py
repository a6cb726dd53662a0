"""What a checked GGUF header holds, and its values by name and type."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar, overload

from edge.errors import BadGGUF
from edge.gguf_header.tables import AGAIN, FILE_TYPES, MAX_LAYERS


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor's place. `shape` is in GGUF order (row length first), `offset` counts from `data_offset`."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    bytes: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Array:
    """An array that was checked and left in the file at byte `offset`; `elements()` reads it."""

    element_type: str
    length: int
    offset: int


Value: TypeAlias = int | float | bool | str | tuple[Any, ...] | Array
T = TypeVar("T", int, float, bool, str)
D = TypeVar("D")
REQUIRED = object()


@dataclass(frozen=True, slots=True)
class Header:
    """What a GGUF file says of itself. `data_offset`, `alignment` and `file_bytes` are in bytes."""

    version: int
    metadata: Mapping[str, Value]
    tensors: tuple[Tensor, ...]
    alignment: int
    data_offset: int
    file_bytes: int

    @overload
    def get(self, key: str, kind: type[T]) -> T: ...
    @overload
    def get(self, key: str, kind: type[T], default: D) -> T | D: ...
    def get(self, key: str, kind: type[T], default: Any = REQUIRED) -> Any:
        """The value of `key`, in which `{arch}` stands for the architecture.

        Raises BadGGUF when it is of another type, not finite, or absent without a default.
        """
        if "{arch}" in key:
            key = key.replace("{arch}", self.architecture)
        value = self.metadata.get(key, default)
        if value is default:
            if value is REQUIRED:
                raise bad(f"{key} is missing from the metadata")
            return default
        if type(value) is not kind:  # not isinstance: a bool is no int here
            raise bad(f"{key} is {describe(value)} where {kind.__name__} is expected")
        if isinstance(value, float) and not math.isfinite(value):
            raise bad(f"{key} is {value}, not a number")
        return value

    def per_layer(self, key: str, default: int | None = None) -> tuple[int, ...]:
        """One int a layer for a key that holds either one for all or an array of them (head counts).

        Raises BadGGUF when it is neither, or the array's length is not the number of layers.
        """
        key = key.replace("{arch}", self.architecture)
        value = self.metadata.get(key)
        if not isinstance(value, tuple):
            one = self.get(key, int) if default is None else self.get(key, int, default)
            return (one,) * self.layers
        if len(value) != self.layers or any(type(item) is not int for item in value):
            raise bad(f"{key} is {describe(value)} where {self.layers} ints are expected, one a layer")
        return value

    @property
    def architecture(self) -> str:
        """Such as `llama`; `read` refuses a file without one."""
        return self.get("general.architecture", str)

    @property
    def layers(self) -> int:
        """`{arch}.block_count`. Raises BadGGUF outside 1 to 512, llama.cpp's limit."""
        count = self.get("{arch}.block_count", int)
        if not 1 <= count <= MAX_LAYERS:
            raise bad(f"{self.architecture}.block_count is {count}; 1 to {MAX_LAYERS} is possible")
        return count

    @property
    def chat_template(self) -> str | None:
        return self.get("tokenizer.chat_template", str, None)

    @property
    def split_count(self) -> int:
        """Files the model is cut into; this one is the first. 1 for a model in one file."""
        return self.get("split.count", int, 1)

    @property
    def parameters(self) -> int:
        """Weights in this file."""
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def bytes_by_type(self) -> dict[str, int]:
        """Tensor type → bytes of all tensors of it, largest first."""
        totals: dict[str, int] = {}
        for tensor in self.tensors:
            totals[tensor.type] = totals.get(tensor.type, 0) + tensor.bytes
        return dict(sorted(totals.items(), key=lambda item: -item[1]))

    @property
    def quantization(self) -> str:
        """The level `general.file_type` names, or of an unknown one the type that most bytes have; without one, as of
        a mixture of one's own, its bits a weight: "4.25bpw"."""
        level = self.get("general.file_type", int, -1)
        if "general.file_type" not in self.metadata and self.tensors:
            return f"{8 * sum(tensor.bytes for tensor in self.tensors) / self.parameters:.2f}bpw"
        return FILE_TYPES.get(level) or next(iter(self.bytes_by_type), "none")


def bad(what: str, hint: str = AGAIN) -> BadGGUF:
    return BadGGUF(what, hint=hint)


def describe(value: object) -> str:
    """A metadata value in a few printable characters."""
    if isinstance(value, Array):
        return f"an array of {value.length} {value.element_type}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:40] + '…'}"
