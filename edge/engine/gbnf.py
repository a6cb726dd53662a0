"""Whether llama.cpp can be given a grammar (GBNF) at all.

Its own parser writes to stderr what is wrong, and some texts make it overflow the stack, never end, take all
memory or abort the process: deep nesting, {3,2}, hidden left recursion, rules that never end in text. So a
text is read here first, as it is read there (llama.cpp, grammars/README.md and src/llama-grammar.cpp), and
refused with a reason. Nothing here recurses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NoReturn

from edge.errors import RequestError

LONGEST = 1_000_000  # characters
MOST_ELEMENTS = 1_000_000  # of the rules once repetitions are written out; 8 bytes each, three times over
MOST_REPEATS = 2000  # llama.cpp's MAX_REPETITION_THRESHOLD
DEEPEST = 200  # brackets within brackets: the native parser calls itself for each
LONGEST_CHAIN = 2000  # rules that begin with rules: the native check calls itself for each
MOST_BEGINNINGS = 4_000  # ways in which a rule can begin: each is looked at for each token of the vocabulary

ESCAPE = r'\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[trn\\"\[\]-])'
SPACES, ANY_SPACES = (re.compile(rf"(?:[{these}]|#[^\r\n]*)*") for these in (r" \t", r" \t\r\n"))
PIECE = re.compile(
    rf"""(?P<text>"(?:{ESCAPE}|[^"\\])*")
    |(?P<set>\[\^?(?:{ESCAPE}|[^\]\\])*\])
    |(?P<token>!?<(?:\[[0-9]{{1,9}}\]|[^\[>][^>]*)>)
    |(?P<name>[a-zA-Z0-9-]+)
    |\{{[ \t]*(?P<least>[0-9]{{1,9}})[ \t]*(?P<range>,[ \t]*(?P<most>[0-9]{{1,9}})?[ \t]*)?\}}
    |(?P<sign>[.|()*+?])""",
    re.VERBOSE,
)
NAME = re.compile(r"[a-zA-Z0-9-]+")
TERMINAL = -1  # an item that is text; others are numbers of rules
Rule = list[list[int]]  # alternatives, each a list of items


@lru_cache(maxsize=16)
def check_grammar(text: str) -> tuple[str, ...]:
    """The tokens that a grammar names, `<text>` or `<[id]>`, once it is known that llama.cpp can follow it.

    Raises RequestError for a text that is none, lacks `root` or a rule, or cannot be followed; the line or the
    rule is named.
    """
    if len(text) > LONGEST:
        refuse(f"is {len(text)} characters long", f"give at most {LONGEST}")
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        refuse("holds a NUL or half a surrogate pair", "give valid Unicode text")
    reader = Reader(text)
    reader.read()
    if "root" not in reader.numbers:
        refuse("has no rule root", "root ::= … is where it begins")
    rules = reader.rules
    names = {number: name for name, number in reader.numbers.items()}
    for number, name in names.items():
        if number not in rules:
            refuse(f"does not say what {name} is", f"add a line {name} ::= …")
    for number in sorted(rules.keys() - derivable(rules, terminals=True)):
        refuse(f"never ends: the rule {owner(names, number)} always needs itself", "give it a way out")
    empty = derivable(rules, terminals=False)
    bare = {number for number, rule in rules.items() if [] in rule}
    check_beginnings(rules, bare, names, loops_end=False)
    check_beginnings(rules, empty, names, loops_end=True)
    return tuple(reader.tokens)


@dataclass
class Open:
    """A rule or a bracket that is being read."""

    number: int
    name: str
    symbols: int = 0  # known when it began
    done: Rule = field(default_factory=list)
    items: list[int] = field(default_factory=list)
    last: int = 0  # where the item begins that a repetition would repeat
    size: int = 0  # native elements of that item
    weight: int = 1  # rules that it stands for already


class Reader:
    """Rules by number, repetitions written out as llama.cpp does."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.rules: dict[int, Rule] = {}
        self.numbers: dict[str, int] = {}
        self.tokens: list[str] = []
        self._elements = 0

    def read(self) -> None:
        """Read all rules. Raises RequestError."""
        at = self._skip(0, ANY_SPACES)
        while at < len(self.text):
            at = self._rule(at)

    def _rule(self, at: int) -> int:
        name = NAME.match(self.text, at)
        if not name:
            self._refuse(at, "is no rule", "write name ::= …; names are letters, digits and -")
        at = self._skip(name.end(), SPACES)
        if not self.text.startswith("::=", at):
            self._refuse(
                at, "has no ::= behind its name", "write name ::= …; names are letters, digits and -"
            )
        at = self._skip(at + 3, ANY_SPACES)
        frames = [Open(self._number(name[0]), name[0])]
        while True:
            piece = PIECE.match(self.text, at)
            if not piece:
                break
            at = self._skip(piece.end(), self._piece(frames, piece))
        if len(frames) > 1:
            self._refuse(at, "lacks a ) or cannot be read", "close every bracket, quote and class")
        self._close(frames[0])
        if at < len(self.text) and self.text[at] not in "\r\n":
            self._refuse(
                at,
                f"cannot be read from {self.text[at : at + 20]!r} on",
                "see llama.cpp's grammars/README.md",
            )
        return self._skip(at, ANY_SPACES)

    def _piece(self, frames: list[Open], piece: re.Match[str]) -> re.Pattern[str]:
        """Take one piece in; what may stand behind it is returned."""
        top, sign = frames[-1], piece["sign"]
        if sign == "|":
            top.done.append(top.items)
            top.items, top.last = [], 0
            return ANY_SPACES
        if sign == "(":
            if len(frames) > DEEPEST:
                self._refuse(piece.start(), f"has more than {DEEPEST} brackets in one another", "use rules")
            symbols = len(self.numbers)
            frames.append(Open(self._fresh(top.name), top.name, symbols))
            return ANY_SPACES
        if sign == ")":
            if len(frames) == 1:
                self._refuse(piece.start(), "has a ) too many", "take it out")
            self._close(frames.pop())
            self._add(frames[-1], [top.number], max(1, len(self.numbers) - top.symbols))
        elif sign in ("*", "+", "?"):
            self._repeat(top, piece.start(), int(sign == "+"), 1 if sign == "?" else None)
        elif piece["least"]:
            least = int(piece["least"])
            most = int(piece["most"]) if piece["most"] else None if piece["range"] else least
            self._repeat(top, piece.start(), least, most)
        elif piece["name"]:
            self._add(top, [self._number(piece["name"])])
        else:
            self._terminal(top, piece)
        return ANY_SPACES if len(frames) > 1 else SPACES

    def _terminal(self, top: Open, piece: re.Match[str]) -> None:
        if piece["token"]:
            self.tokens.append(piece["token"].lstrip("!"))
        nothing = piece[0] in ('""', "[]", "[^]")
        self._count(piece.start(), len(piece[0]))
        self._add(top, [] if nothing else [TERMINAL])
        top.size = len(piece[0])

    def _add(self, top: Open, items: list[int], weight: int = 1) -> None:
        top.last, top.size, top.weight = len(top.items), 1, weight
        top.items += items

    def _repeat(self, top: Open, at: int, least: int, most: int | None) -> None:
        item = top.items[top.last :]
        if not item:
            self._refuse(at, "repeats nothing", "put an item before *, +, ? and {}")
        if most is not None and most < least:
            self._refuse(at, f"repeats from {least} to {most} times", "put the smaller number first")
        factor = most or least or 1
        if top.weight * factor > MOST_REPEATS:  # a larger limit would silently be none at all
            self._refuse(at, f"repeats more than {MOST_REPEATS} times", "repeat a shorter item less often")
        optional = 1 if most is None else most - least
        self._count(at, top.size * (least + optional))
        top.size = top.size * least + 1
        top.items[top.last :] = item * least
        made = TERMINAL
        for _ in range(optional):
            before, made = made, self._fresh(top.name)
            follow = made if most is None else before
            self.rules[made] = [item + ([follow] if follow != TERMINAL else []), []]
        if optional:
            top.items.append(made)
        top.weight *= factor

    def _close(self, top: Open) -> None:
        self.rules[top.number] = [*top.done, top.items]

    def _number(self, name: str) -> int:
        return self.numbers.setdefault(name, len(self.numbers))

    def _fresh(self, name: str) -> int:
        return self._number(f"{name}_{len(self.numbers)}")

    def _skip(self, at: int, spaces: re.Pattern[str]) -> int:
        found = spaces.match(self.text, at)
        return found.end() if found else at

    def _count(self, at: int, elements: int) -> None:
        self._elements += elements
        if self._elements > MOST_ELEMENTS:
            self._refuse(at, "makes the grammar too large", "repeat less")

    def _refuse(self, at: int, what: str, hint: str) -> NoReturn:
        refuse(f"does not parse: line {self.text.count(chr(10), 0, at) + 1} {what}", hint)


def refuse(what: str, hint: str) -> NoReturn:
    """Raise RequestError."""
    raise RequestError(f"the grammar {what}", hint=hint)


def owner(names: dict[int, str], number: int) -> str:
    """The rule of the text that a rule belongs to: llama.cpp's own are called name_number."""
    return names[number].partition("_")[0]


def derivable(rules: dict[int, Rule], *, terminals: bool) -> set[int]:
    """The rules that can become text (terminals) or nothing at all (not terminals)."""
    users: dict[int, list[tuple[int, int]]] = {}
    missing: list[int] = []  # of each alternative, how many items are not known to be derivable
    ready: list[int] = []
    for number, rule in rules.items():
        for alternative in rule:
            open_items = [item for item in alternative if not (terminals and item == TERMINAL)]
            for item in open_items:
                users.setdefault(item, []).append((number, len(missing)))
            if not open_items:
                ready.append(number)
            missing.append(len(open_items))
    found: set[int] = set()
    while ready:
        number = ready.pop()
        if number in found:
            continue
        found.add(number)
        for user, alternative_at in users.get(number, ()):
            missing[alternative_at] -= 1
            if not missing[alternative_at]:
                ready.append(user)
    return found


def beginnings(rule: Rule, empty: set[int]) -> Iterator[tuple[int, bool]]:
    """The rules that a rule can begin with, and whether more of the alternative follows behind each."""
    for alternative in rule:
        for at, item in enumerate(alternative):
            if item == TERMINAL:
                break
            yield item, at + 1 < len(alternative)
            if item not in empty:
                break


def check_beginnings(
    rules: dict[int, Rule], empty: set[int], names: dict[int, str], *, loops_end: bool
) -> None:
    """Raise RequestError where rules begin with themselves, in too many ways or after too many others.

    `empty` are the rules that are taken to be skippable. A rule that begins with itself and ends there comes
    to an end natively (loops_end), but its own check, which knows only rules that are bare of anything in one
    alternative, refuses all it sees.
    """
    follow = {number: list(beginnings(rule, empty)) for number, rule in rules.items()}
    group = components(follow)
    ways: dict[int, int] = {}
    depth: dict[int, int] = {}
    for number, mine in group.items():  # rules come after those that they begin with
        ways[mine] = ways.get(mine, 0) + len(rules[number])
        depth[mine] = depth.get(mine, 0) + 1
        for other, more in follow[number]:
            theirs = group[other]
            if theirs != mine:
                ways[mine] += ways[theirs]
                depth[mine] = max(depth[mine], 1 + depth[theirs])
            elif more or not loops_end:
                refuse(
                    f"has left recursion: {owner(names, number)} begins with itself",
                    "put what repeats behind some text, or use *",
                )
        if ways[mine] > MOST_BEGINNINGS:
            refuse(
                f"is too ambiguous: {owner(names, number)} can begin in more than {MOST_BEGINNINGS} ways",
                "let alternatives begin with different text",
            )
        if depth[mine] > LONGEST_CHAIN:
            refuse(f"goes through more than {LONGEST_CHAIN} rules before any text", "use fewer rules")


def components(follow: dict[int, list[tuple[int, bool]]]) -> dict[int, int]:
    """Strongly connected components (Tarjan 1972), without recursion: each rule's, in the order they close."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    group: dict[int, int] = {}
    waiting: list[int] = []
    for first in follow:
        if first in index:
            continue
        index[first] = low[first] = len(index)
        waiting.append(first)
        calls = [(first, iter(follow[first]))]
        while calls:
            number, rest = calls[-1]
            for other, _ in rest:
                if other not in index:
                    index[other] = low[other] = len(index)
                    waiting.append(other)
                    calls.append((other, iter(follow[other])))
                    break
                if other not in group:
                    low[number] = min(low[number], index[other])
            else:
                calls.pop()
                if calls:
                    low[calls[-1][0]] = min(low[calls[-1][0]], low[number])
                if low[number] == index[number]:
                    while True:
                        member = waiting.pop()
                        group[member] = number
                        if member == number:
                            break
    return group
