"""What a family's forward pass computes with while it is written down: values without numbers, weights unread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

TOGETHER = " | "  # between the names of weights in one


@dataclass(frozen=True, eq=False)
class Handle:
    """A weight that is read when the file is written. `name` is the table's, and says what was done to it.

    `exact`: float32 at every level.
    """

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Array]
    exact: bool = False

    __array_ufunc__ = None  # a NumPy scalar on the left leaves the operation to us

    def changed(self, how: str, shape: tuple[int, ...], change: Callable[[Array], Array]) -> Handle:
        """The handle of `change` applied to the weight."""
        return Handle(f"{self.name}{how}", shape, lambda: np.asarray(change(self.read())), self.exact)

    def __add__(self, number: float) -> Handle:
        return self.changed(f" + {number}", self.shape, lambda x: x + np.float32(number))

    __radd__ = __add__

    def __mul__(self, number: float) -> Handle:
        return self.changed(f" * {number}", self.shape, lambda x: x * np.float32(number))

    __rmul__ = __mul__

    def __getitem__(self, rows: slice) -> Handle:
        start, stop, step = rows.indices(self.shape[0])
        shape = (len(range(start, stop, step)), *self.shape[1:])
        return self.changed(f"[{start}:{stop}:{step}]", shape, lambda x: x[rows])

    @property
    def T(self) -> Handle:
        return self.changed(".T", self.shape[::-1], lambda x: x.T)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]


def stacked(handles: list[Handle]) -> Handle:
    """Weights one below the other."""
    name = TOGETHER.join(handle.name for handle in handles)
    shape = (sum(handle.shape[0] for handle in handles), *handles[0].shape[1:])
    exact = any(handle.exact for handle in handles)
    return Handle(name, shape, lambda: np.concatenate([handle.read() for handle in handles]), exact)


class Value:
    """A result of the pass: what computes it, from what. Values are kept in the order in which they were made."""

    __array_ufunc__ = None

    def __init__(
        self, made: list[Value], kind: str, operands: tuple[Any, ...], attributes: dict[str, Any]
    ) -> None:
        self.made, self.kind, self.operands, self.attributes = made, kind, operands, attributes
        self.index = len(made)
        made.append(self)

    def new(self, kind: str, *operands: Any, **attributes: Any) -> Value:
        return Value(self.made, kind, operands, attributes)

    def __add__(self, other: Any) -> Value:
        return self.new("add", self, other)

    def __radd__(self, other: Any) -> Value:
        return self.new("add", other, self)

    def __sub__(self, other: Any) -> Value:
        return self.new("subtract", self, other)

    def __mul__(self, other: Any) -> Value:
        return self.new("multiply", self, other)

    def __rmul__(self, other: Any) -> Value:
        return self.new("multiply", other, self)

    def __truediv__(self, other: Any) -> Value:
        return self.new("divide", self, other)
