"""One type of JSON value each, with what a schema may say of it, and what two of them have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from typing import Any, TypeAlias

from edge.structure.automaton import ANY, Dfa, Repeat, both, compiled, limited
from edge.structure.regex import parsed
from edge.structure.rules import escaped

Conj: TypeAlias = tuple[str, ...]  # pointers to schemas that all hold; of none, anything does


@dataclass(frozen=True)
class Null:
    pass


@dataclass(frozen=True)
class Boolean:
    pass


@dataclass(frozen=True)
class Number:
    """A number; an `open` limit is not one of them."""

    whole: bool = False
    low: Decimal | None = None
    high: Decimal | None = None
    low_open: bool = False
    high_open: bool = False

    def holds(self, value: Any) -> bool:
        return (
            (not self.whole or value == int(value))
            and (self.low is None or (value > self.low if self.low_open else value >= self.low))
            and (self.high is None or (value < self.high if self.high_open else value <= self.high))
        )


@dataclass(frozen=True)
class Text:
    """A text of so many characters in which every pattern matches somewhere."""

    low: int = 0
    high: int | None = None
    patterns: tuple[str, ...] = ()

    def automaton(self) -> Dfa:
        """Only for a Text with patterns: lengths alone need none."""
        return text_automaton(self.patterns, self.low, self.high)


@dataclass(frozen=True)
class Array:
    """`prefix` by position, `rest` behind it; `closed` where nobody said what stands behind the prefix."""

    prefix: tuple[Conj, ...] = ()
    rest: Conj = ()
    low: int = 0
    high: int | None = None
    closed: bool = False

    def item(self, at: int) -> Conj:
        return self.prefix[at] if at < len(self.prefix) else self.rest


@dataclass(frozen=True)
class Object:
    """`extra` for names that are not in `properties`; `stated` where somebody said what they may be."""

    properties: tuple[tuple[str, Conj], ...] = ()
    required: tuple[str, ...] = ()
    extra: Conj = ()
    stated: bool = False

    @property
    def closed(self) -> bool:
        """Whether an answer has no other names. JSON Schema would let in any; a small model never stops adding."""
        return bool(self.properties) and not self.stated

    def member(self, name: str) -> Conj:
        return next((conj for known, conj in self.properties if known == name), self.extra)


@dataclass(frozen=True)
class Literal:
    """One value; `text` is its only JSON text without spaces and with sorted names."""

    text: str
    value: Any = field(compare=False)


Shape: TypeAlias = Null | Boolean | Number | Text | Array | Object | Literal
EVERY: tuple[Shape, ...] = (Object(), Array(), Text(), Number(), Boolean(), Null())


@lru_cache(maxsize=64)
def text_automaton(patterns: tuple[str, ...], low: int, high: int | None) -> Dfa:
    found = compiled(Repeat(ANY, 0, None))
    for pattern in patterns:
        found = both(found, compiled(parsed(pattern, search=True)))
    return found if not low and high is None else limited(found, low, high)


def least(one: int | None, other: int | None) -> int | None:
    return min((limit for limit in (one, other) if limit is not None), default=None)


def whole(value: Any) -> int | None:
    return None if value is None else int(value)


def number(node: Mapping[str, Any], only_whole: bool) -> Number:
    """The number that a schema's limits describe; that they leave something has been checked."""
    found = Number(only_whole)
    for low, high, strict in (("minimum", "maximum", False), ("exclusiveMinimum", "exclusiveMaximum", True)):
        below, above = (Decimal(node[name]) if name in node else None for name in (low, high))
        found = common_number(found, Number(only_whole, below, above, strict, strict)) or found
    return found


def common_number(one: Number, other: Number) -> Number | None:
    low, high = one, one
    if other.low is not None and (one.low is None or (other.low, other.low_open) > (one.low, one.low_open)):
        low = other
    if other.high is not None and (
        one.high is None or (other.high, not other.high_open) < (one.high, not one.high_open)
    ):
        high = other
    found = Number(one.whole or other.whole, low.low, high.high, low.low_open, high.high_open)
    if found.low is not None and found.high is not None:
        strict = found.low_open or found.high_open
        if found.low > found.high or (strict and found.low == found.high):
            return None
    return found


def common_text(one: Text, other: Text) -> Text | None:
    low, high = max(one.low, other.low), least(one.high, other.high)
    if high is not None and low > high:
        return None
    found = Text(low, high, tuple(sorted({*one.patterns, *other.patterns})))
    return None if found.patterns and found.automaton().empty else found


def literal(value: Any) -> Literal:
    return Literal(json_text(value, canonical=True), value)


def json_text(value: Any, *, comma: str = ",", colon: str = ":", canonical: bool = False) -> str:
    """A value as JSON. `canonical`: equal values have equal texts (1 and 1.0, names in any order)."""

    def text(value: Any) -> str:
        if value is None or isinstance(value, bool):
            return {None: "null", True: "true", False: "false"}[value]
        if isinstance(value, int):
            return str(value)
        if isinstance(value, Decimal):
            return f"{value.normalize() + 0:f}" if canonical else str(value)
        if isinstance(value, str):
            return f'"{escaped(value)}"'
        if isinstance(value, list):
            return f"[{comma.join(text(item) for item in value)}]"
        names = sorted(value) if canonical else value
        return "{" + comma.join(f'"{escaped(name)}"{colon}{text(value[name])}' for name in names) + "}"

    return text(value)
