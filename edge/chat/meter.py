"""What one rendering of a template may still spend, and the guards that estimate a cost before it is made.

This module imports jinja2; import it inside the function that renders.
"""

from __future__ import annotations

import time
from collections.abc import ItemsView, Iterable, Iterator, KeysView, ValuesView
from contextvars import ContextVar
from itertools import chain
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

SECONDS = 2.0
ITEM = 16  # units: a list slot and a small object are about 64 bytes, a character at most 4
SHORT = 64  # characters: rsplit and strip cost text x argument; templates pass a tag or a newline


class Meter:
    """What one rendering may still spend, in units, and until when."""

    def __init__(self, budget: int) -> None:
        self.budget = self.left = budget
        self.deadline = time.monotonic() + SECONDS
        # id → the value and what printing it costs. Holding the value keeps its id; a template changes none.
        self.weights: dict[int, tuple[Any, int]] = {}

    def spend(self, units: int) -> None:
        self.left -= units
        if self.left < 0:
            raise SecurityError("it makes far more text than the conversation calls for")
        if time.monotonic() > self.deadline:
            raise SecurityError(f"it runs for more than {SECONDS:g} seconds")

    def shallow(self, value: Any) -> Any:
        """Pay for a value whose parts were paid before; iterators and views become lists, paid by item."""
        if isinstance(value, str):
            self.spend(len(value))
        elif isinstance(value, (Iterator, KeysView, ValuesView, ItemsView)):
            return list(self.steps(value))
        elif isinstance(value, (list, tuple, dict)):
            self.spend(ITEM * len(value))
        elif isinstance(value, int) and value.bit_length() > 256:
            raise SecurityError("it computes with huge numbers")
        return value

    def deep(self, value: Any) -> Any:
        """`shallow` for a value that nests others: `[x, x]` is cheap and doubles what printing costs."""
        value = self.shallow(value)
        self.check(value)
        return value

    def check(self, *values: Any) -> None:
        """Refuse what would cost more to print or compare than all there was to spend."""
        if sum(map(self.weight, values)) > self.budget:
            raise SecurityError("it nests values without end")

    def weight(self, value: Any) -> int:
        """Units that printing or comparing a value costs."""
        if isinstance(value, str):
            return len(value)
        if isinstance(value, Namespace):  # it can change after it was weighed
            raise SecurityError("it prints or nests a namespace")
        if not isinstance(value, (list, tuple, dict)):
            return ITEM
        if id(value) not in self.weights:
            parts = chain.from_iterable(value.items()) if isinstance(value, dict) else value
            self.weights[id(value)] = value, ITEM * (1 + len(value)) + sum(map(self.weight, parts))
        return self.weights[id(value)][1]

    def text(self, value: Any) -> str:
        """`str(value)`, paid."""
        if isinstance(value, str):
            return value
        self.spend(self.weight(value))
        return str(value)

    def steps(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.spend(ITEM)
            yield value


METER: ContextVar[Meter] = ContextVar("METER")


def joined(separator: str, pieces: Iterable[Any]) -> str:
    meter = METER.get()
    texts = [meter.text(piece) for piece in pieces]
    meter.spend(ITEM + len(separator) * len(texts) + sum(map(len, texts)))
    return separator.join(texts)


def expect_short(*values: Any) -> None:
    if any(isinstance(value, str) and len(value) > SHORT for value in values):
        raise SecurityError(f"it passes a text above {SHORT} characters where a tag belongs")


def expect_range(width: int) -> int:
    if not -SHORT <= width <= SHORT:
        raise SecurityError(f"it asks for a width of more than {SHORT}")
    return width


def expect_replace(text: str, old: str = "", new: str = "", *rest: Any) -> None:
    """Pays for the result before str.replace makes it; `rest` (a count) only makes it smaller."""
    METER.get().spend(len(text) + text.count(old) * len(new))


def expect_numbers(operator: str, left: Any, right: Any) -> None:
    """`*` repeats text and lists, and grows numbers without end; templates multiply small numbers."""
    if not isinstance(left, (int, float)) or not isinstance(right, (int, float)):
        units = max((len(side) for side in (left, right) if isinstance(side, (str, list, tuple))), default=0)
        times = max((side for side in (left, right) if isinstance(side, int)), default=0)
        METER.get().spend(units * max(times, 0))
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        METER.get().shallow(1 << min(abs(left).bit_length() * max(right, 0), 1024))
