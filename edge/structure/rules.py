"""Rules of a grammar while it is made, and the GBNF text of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from edge.errors import RequestError
from edge.structure.automaton import Dfa, Ranges, common

MAX_TEXT = 1_000_000  # characters of a grammar, as `edge.engine.gbnf` takes them

SHORT = {0x08: "b", 0x09: "t", 0x0A: "n", 0x0C: "f", 0x0D: "r", 0x22: '"', 0x5C: "\\"}  # RFC 8259, section 7
PLAIN: Ranges = (
    (0x20, 0x21),
    (0x23, 0x5B),
    (0x5D, 0xD7FF),
    (0xE000, 0x10FFFF),
)  # what a JSON string holds as it is


@dataclass(frozen=True)
class Ref:
    """The rule of that name, in the place of what it derives."""

    name: str


Item: TypeAlias = Ref | str  # a str is GBNF as it stands: a literal or a class of characters
Body: TypeAlias = list[list[Item]]  # the alternatives of a rule; each a sequence, empty for the empty text


@dataclass
class Rules:
    """Names and their alternatives; `root` is where an answer begins."""

    bodies: dict[str, Body] = field(default_factory=dict)
    classes: dict[Ranges, Item] = field(default_factory=dict)
    size: int = 0

    def add(self, name: str, body: Body) -> Ref:
        self.bodies[name] = body
        self.size += sum(
            4 + len(item if isinstance(item, str) else item.name) for row in body for item in row
        )
        if self.size > MAX_TEXT:
            raise RequestError(
                f"the grammar is larger than {MAX_TEXT} characters", hint="use smaller limits or fewer values"
            )
        return Ref(name)

    def fresh(self, prefix: str) -> str:
        return f"{prefix}{len(self.bodies)}"

    def automaton(self, dfa: Dfa, *, in_json: bool = False) -> Ref:
        """Rules of the texts that `dfa` accepts; `in_json` as a JSON string writes them, without its quotes.

        Every alternative begins with another character, and its rule stands last: so there is one stack a branch,
        one entry deep, whatever the text.
        """
        prefix = self.fresh("s") + "-"
        queued, todo = {0}, [0]
        for state in todo:
            body: Body = [[]] if dfa.accepting[state] else []
            targets: dict[int, list[tuple[int, int]]] = {}
            for first, last, target in dfa.edges[state]:
                targets.setdefault(target, []).append((first, last))
            for target, ranges in targets.items():
                row: list[Item] = []
                if len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
                    letters, target = follow(dfa, ranges[0][0], target)
                    row.append(literal(escaped(letters) if in_json else letters))
                else:
                    row.append(self.json_class(tuple(ranges)) if in_json else bracket(ranges))
                if dfa.edges[target]:
                    row.append(Ref(f"{prefix}{target}"))
                    if target not in queued:
                        queued.add(target)
                        todo.append(target)
                body.append(row)
            self.add(f"{prefix}{state}", body)
        return Ref(f"{prefix}0")

    def json_class(self, ranges: Ranges) -> Item:
        """One of these characters in a JSON string, each in its shortest form."""
        if ranges not in self.classes:
            self.classes[ranges] = self._json_class(ranges)
        return self.classes[ranges]

    def _json_class(self, ranges: Ranges) -> Item:
        body: Body = []
        if plain := common(ranges, PLAIN):
            body.append([bracket(plain)])
        held = [point for low, high in ranges for point in range(low, min(high, 0x5C) + 1)]
        if short := "".join(SHORT[point] for point in held if point in SHORT):
            body.append([literal("\\"), bracket(points(short))])
        for high in (0, 1):
            if low := [f"{p & 15:x}" for p in held if p >> 4 == high and p not in SHORT]:
                body.append([literal(f"\\u00{high}"), bracket(points("".join(low)))])
        if len(body) == 1 and len(body[0]) == 1:
            return body[0][0]
        return self.add(self.fresh("c"), body)

    def prune(self) -> list[str]:
        """Drop the alternatives that never end; returns the rules that have none left."""
        users: dict[str, list[tuple[str, int]]] = {}
        missing: dict[tuple[str, int], int] = {}
        done: set[str] = set()
        todo: list[str] = []
        for name, body in self.bodies.items():
            for k, row in enumerate(body):
                wanted = {item.name for item in row if isinstance(item, Ref)}
                missing[name, k] = len(wanted)
                for other in wanted:
                    users.setdefault(other, []).append((name, k))
                if not wanted and name not in done:
                    done.add(name)
                    todo.append(name)
        while todo:
            for name, k in users.get(todo.pop(), ()):
                missing[name, k] -= 1
                if not missing[name, k] and name not in done:
                    done.add(name)
                    todo.append(name)
        for name, body in self.bodies.items():
            body[:] = [row for k, row in enumerate(body) if not missing[name, k]]
        return [name for name in self.bodies if name not in done]

    def text(self) -> str:
        """GBNF of all that `root` reaches."""
        seen, todo, lines = {"root"}, ["root"], []
        for name in todo:
            alternatives = []
            for row in self.bodies[name]:
                alternatives.append(" ".join(i if isinstance(i, str) else i.name for i in row) or '""')
                for item in row:
                    if isinstance(item, Ref) and item.name not in seen:
                        seen.add(item.name)
                        todo.append(item.name)
            lines.append(f"{name} ::= {' | '.join(alternatives)}")
        return "\n".join(lines) + "\n"


def follow(dfa: Dfa, point: int, state: int) -> tuple[str, int]:
    """The letters from here on while there is only one way, and the state behind them."""
    letters, seen = [chr(point)], {state}
    while not dfa.accepting[state] and len(dfa.edges[state]) == 1:
        first, last, target = dfa.edges[state][0]
        if first != last or target in seen:
            break
        letters.append(chr(first))
        seen.add(target)
        state = target
    return "".join(letters), state


def escaped(text: str) -> str:
    """A text as a JSON string holds it, without the quotes."""
    return "".join(
        f"\\{SHORT[ord(letter)]}"
        if ord(letter) in SHORT
        else f"\\u{ord(letter):04x}"
        if letter < " "
        else letter
        for letter in text
    )


def points(letters: Iterable[str]) -> list[tuple[int, int]]:
    return [(ord(letter), ord(letter)) for letter in sorted(letters)]


def literal(text: str) -> str:
    """GBNF of exactly this text."""
    return '"' + "".join(written(letter, '"\\') for letter in text) + '"'


def bracket(ranges: Sequence[tuple[int, int]]) -> str:
    """GBNF of one character out of these ranges."""
    shown = []
    for low, high in ranges:
        shown.append(written(chr(low), "[]\\-"))
        if high > low:
            shown.append(f"-{written(chr(high), '[]-' + chr(92))}")
    return f"[{''.join(shown)}]"


def written(letter: str, special: str) -> str:
    """A character in GBNF: ASCII as it is, but for what has a meaning there."""
    if letter in special:
        return f"\\{letter}"
    if letter == "^" or not " " <= letter <= "~":
        point = ord(letter)
        return (
            f"\\x{point:02X}" if point < 0x80 else f"\\u{point:04X}" if point < 0x10000 else f"\\U{point:08X}"
        )
    return letter
