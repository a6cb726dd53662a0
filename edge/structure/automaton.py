"""Regular languages over code points: expressions, deterministic automata, and what both can be combined to.

A pattern, a format, a range of numbers or a list of texts becomes an automaton first: it is never ambiguous, has no
dead ends and no left recursion, so the grammar that is written of it costs llama.cpp one stack a branch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TypeAlias

from edge.errors import RequestError

MAX_STATES = 10_000  # of an automaton that is made of an expression
MAX_LETTERS = 200_000  # of all texts of a list

Range: TypeAlias = tuple[int, int]  # first and last code point
Ranges: TypeAlias = tuple[Range, ...]  # sorted, apart

TEXT: Ranges = ((0, 0xD7FF), (0xE000, 0x10FFFF))  # every character there is; a lone surrogate is none
SHOWN: Ranges = ((1, 0xD7FF), (0xE000, 0x10FFFF))  # llama.cpp's grammars end a token at NUL


@dataclass(frozen=True)
class Chars:
    """One character out of these ranges."""

    ranges: Ranges


@dataclass(frozen=True)
class Seq:
    """One after the other; of none, the empty text."""

    parts: tuple[Node, ...] = ()


@dataclass(frozen=True)
class Alt:
    """One of them; of none, nothing at all."""

    parts: tuple[Node, ...] = ()


@dataclass(frozen=True)
class Repeat:
    """`node` at least `low` and at most `high` times; None: without end."""

    node: Node
    low: int
    high: int | None


Node: TypeAlias = Chars | Seq | Alt | Repeat
ANY = Chars(TEXT)


def char(first: str, last: str | None = None) -> Chars:
    """The characters from `first` to `last`, or `first` alone."""
    return Chars(((ord(first), ord(last or first)),))


def word(text: str) -> Seq:
    """Exactly this text."""
    return Seq(tuple(char(letter) for letter in text))


def union(ranges: Iterable[Range]) -> Ranges:
    """The ranges in order, joined where they touch."""
    merged: list[Range] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def common(one: Ranges, other: Ranges) -> Ranges:
    """What lies in both."""
    found: list[Range] = []
    i = j = 0
    while i < len(one) and j < len(other):
        low, high = max(one[i][0], other[j][0]), min(one[i][1], other[j][1])
        if low <= high:
            found.append((low, high))
        if one[i][1] < other[j][1]:
            i += 1
        else:
            j += 1
    return tuple(found)


def outside(ranges: Ranges) -> Ranges:
    """Every character that is not in `ranges`."""
    gaps: list[Range] = []
    at = 0
    for low, high in (*union(ranges), (0x110000, 0)):
        if at < low:
            gaps.append((at, low - 1))
        at = high + 1
    return common(tuple(gaps), TEXT)


@dataclass(frozen=True)
class Dfa:
    """A deterministic automaton that starts in state 0; every state of it can reach an end.

    edges[state] is (first, last, next state) in order, none overlapping. `empty` where no text is accepted.
    """

    edges: tuple[tuple[tuple[int, int, int], ...], ...]
    accepting: tuple[bool, ...]

    @property
    def empty(self) -> bool:
        return not self.edges[0] and not self.accepting[0]

    @cached_property
    def finite(self) -> bool:
        """Whether there is a longest text: no state comes back to itself."""
        waiting = [0] * len(self.edges)
        for _, _, target in (edge for edges in self.edges for edge in edges):
            waiting[target] += 1
        ready, seen = [state for state, count in enumerate(waiting) if not count], 0
        while ready:
            seen += 1
            for _, _, target in self.edges[ready.pop()]:
                waiting[target] -= 1
                if not waiting[target]:
                    ready.append(target)
        return seen == len(self.edges)

    def accepts(self, text: str) -> bool:
        state = 0
        for letter in text:
            point = ord(letter)
            for first, last, target in self.edges[state]:
                if first <= point <= last:
                    state = target
                    break
            else:
                return False
        return self.accepting[state]


def compiled(node: Node, letters: Ranges = TEXT) -> Dfa:
    """The automaton of an expression over these characters.

    Raises RequestError where it has more than MAX_STATES states: (a|b)*a(a|b){40} needs 2^41.
    """
    if weight(node) > 2 * MAX_STATES:
        raise too_large()
    return _Nfa(letters).subset(node)


def too_large() -> RequestError:
    return RequestError(
        f"the pattern needs more than {MAX_STATES} states", hint="use fewer or smaller repetitions"
    )


def weight(node: Node) -> int:
    """How many characters and branches an expression has once its repetitions are written out."""
    if isinstance(node, Chars):
        return 1
    if isinstance(node, Repeat):
        return 1 + weight(node.node) * max(node.low + (node.high is None), node.high or 0, 1)
    return 1 + sum(weight(part) for part in node.parts)


class _Nfa:
    """Thompson's construction, and the subset construction of what came out."""

    def __init__(self, letters: Ranges) -> None:
        self.letters = letters
        self.free: list[list[int]] = []  # moves that read nothing
        self.moves: list[list[tuple[Ranges, int]]] = []

    def state(self) -> int:
        self.free.append([])
        self.moves.append([])
        return len(self.free) - 1

    def add(self, node: Node, start: int) -> int:
        """Append `node` behind `start`; returns the state where it ends."""
        if isinstance(node, Chars):
            end = self.state()
            if ranges := common(union(node.ranges), self.letters):
                self.moves[start].append((ranges, end))
            return end
        if isinstance(node, Seq):
            for part in node.parts:
                start = self.add(part, start)
            return start
        if isinstance(node, Alt):
            end = self.state()
            for part in node.parts:
                inner = self.state()
                self.free[start].append(inner)
                self.free[self.add(part, inner)].append(end)
            return end
        for _ in range(node.low):
            start = self.add(node.node, start)
        end = self.state()
        if node.high is None:
            loop = self.state()
            self.free[start].append(loop)
            self.free[self.add(node.node, loop)].append(loop)
            self.free[loop].append(end)
            return end
        for _ in range(node.high - node.low):
            self.free[start].append(end)
            inner = self.state()  # of its own, lest an inner loop leads back past the way out
            self.free[start].append(inner)
            start = self.add(node.node, inner)
        self.free[start].append(end)
        return end

    def closure(self, states: Iterable[int]) -> frozenset[int]:
        found, todo = set(states), list(states)
        while todo:
            for target in self.free[todo.pop()]:
                if target not in found:
                    found.add(target)
                    todo.append(target)
        return frozenset(found)

    def subset(self, node: Node) -> Dfa:
        start = self.state()
        end = self.add(node, start)
        known: dict[frozenset[int], int] = {self.closure((start,)): 0}
        order, edges, accepting = list(known), [], []
        closures: dict[frozenset[int], frozenset[int]] = {}
        budget = 40 * MAX_STATES  # work, in members of subsets: what is large takes no minutes to refuse
        for here in order:
            accepting.append(end in here)
            budget -= len(here)
            if budget < 0:
                raise too_large()
            row: list[tuple[int, int, int]] = []
            for first, last, targets in split([move for state in here for move in self.moves[state]]):
                there = closures.get(targets)
                if there is None:
                    there = closures[targets] = self.closure(targets)
                if there not in known:
                    if len(known) == MAX_STATES:
                        raise too_large()
                    known[there] = len(known)
                    order.append(there)
                row.append((first, last, known[there]))
            edges.append(row)
        return trimmed(edges, accepting)


def split(moves: Sequence[tuple[Ranges, int]]) -> Iterator[tuple[int, int, frozenset[int]]]:
    """Overlapping moves as ranges that do not overlap, each with all the states it leads to."""
    if len(moves) == 1:
        ranges, target = moves[0]
        for first, last in ranges:
            yield first, last, frozenset((target,))
        return
    changes: dict[int, list[tuple[int, int]]] = {}
    for ranges, target in moves:
        for first, last in ranges:
            changes.setdefault(first, []).append((target, 1))
            changes.setdefault(last + 1, []).append((target, -1))
    counts: dict[int, int] = {}
    for here, following in pairwise(sorted(changes)):
        for target, change in changes[here]:
            counts[target] = counts.get(target, 0) + change
        if targets := frozenset(target for target, count in counts.items() if count):
            yield here, following - 1, targets


def trimmed(edges: Sequence[Sequence[tuple[int, int, int]]], accepting: Sequence[bool]) -> Dfa:
    """Without the states that reach no end, their neighbouring ranges joined."""
    sources: list[list[int]] = [[] for _ in edges]
    for state, row in enumerate(edges):
        for _, _, target in row:
            sources[target].append(state)
    todo = [state for state, ends in enumerate(accepting) if ends]
    alive = set(todo)
    while todo:
        for state in sources[todo.pop()]:
            if state not in alive:
                alive.add(state)
                todo.append(state)
    if 0 not in alive:
        return Dfa(((),), (False,))
    number = {state: k for k, state in enumerate(sorted(alive))}
    rows = []
    for state in number:
        kept: list[tuple[int, int, int]] = []
        for first, last, target in sorted(edges[state]):
            if target not in number:
                continue
            if kept and kept[-1][2] == number[target] and kept[-1][1] + 1 == first:
                kept[-1] = (kept[-1][0], last, number[target])
            else:
                kept.append((first, last, number[target]))
        rows.append(tuple(kept))
    return Dfa(tuple(rows), tuple(accepting[state] for state in number))


def both(one: Dfa, other: Dfa) -> Dfa:
    """What both accept."""
    return _product(one, other, inside=True)


def without(one: Dfa, other: Dfa) -> Dfa:
    """What `one` accepts and `other` does not."""
    return _product(one, other, inside=False)


def _product(one: Dfa, other: Dfa, *, inside: bool) -> Dfa:
    known: dict[tuple[int, int], int] = {(0, 0): 0}
    order, edges, accepting = [(0, 0)], [], []
    for a, b in order:  # b is -1 once `other` has no way on
        accepting.append(one.accepting[a] and (b >= 0 and other.accepting[b]) == inside)
        row = []
        for first, last, target, partner in _together(one.edges[a], other.edges[b] if b >= 0 else ()):
            if partner < 0 and inside:
                continue
            pair = (target, partner)
            if pair not in known:
                if len(known) == MAX_STATES:
                    raise too_large()
                known[pair] = len(known)
                order.append(pair)
            row.append((first, last, known[pair]))
        edges.append(row)
    return trimmed(edges, accepting)


def _together(
    one: Sequence[tuple[int, int, int]], other: Sequence[tuple[int, int, int]]
) -> Iterator[tuple[int, int, int, int]]:
    """The ranges of `one`, cut where those of `other` begin and end; the other's state, or -1."""
    for first, last, target in one:
        at = first
        for low, high, partner in other:
            if high < at or low > last:
                continue
            if low > at:
                yield at, low - 1, target, -1
            yield max(at, low), min(last, high), target, partner
            at = high + 1
        if at <= last:
            yield at, last, target, -1


def limited(one: Dfa, low: int, high: int | None) -> Dfa:
    """What `one` accepts of at least `low` and at most `high` characters."""
    most = low if high is None else high
    known: dict[tuple[int, int], int] = {(0, 0): 0}
    order, edges, accepting = deque([(0, 0)]), [], []
    while order:
        state, count = order.popleft()
        accepting.append(one.accepting[state] and count >= low)
        row: list[tuple[int, int, int]] = []
        if high is None or count < high:
            for first, last, target in one.edges[state]:
                pair = (target, min(count + 1, most))
                if pair not in known:
                    if len(known) == MAX_STATES:
                        raise too_large()
                    known[pair] = len(known)
                    order.append(pair)
                row.append((first, last, known[pair]))
        edges.append(row)
    return trimmed(edges, accepting)


def words(texts: Iterable[str]) -> Dfa:
    """Exactly these texts, their common beginnings shared. Raises RequestError for more than MAX_LETTERS."""
    edges: list[dict[int, int]] = [{}]
    accepting = [False]
    for text in texts:
        state = 0
        if len(edges) + len(text) > MAX_LETTERS:
            raise RequestError(
                f"the texts to choose from have more than {MAX_LETTERS} characters",
                hint="use fewer or shorter ones",
            )
        for letter in text:
            target = edges[state].setdefault(ord(letter), len(edges))
            if target == len(edges):
                edges.append({})
                accepting.append(False)
            state = target
        accepting[state] = True
    return trimmed([[(point, point, to) for point, to in row.items()] for row in edges], accepting)
