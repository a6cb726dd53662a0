"""Regular expressions, as ECMA 262 and Python both read them, as far as they describe a regular language."""

from __future__ import annotations

from edge.errors import RequestError
from edge.structure.automaton import (
    ANY,
    SHOWN,
    Alt,
    Chars,
    Dfa,
    Node,
    Range,
    Ranges,
    Repeat,
    Seq,
    compiled,
    outside,
    union,
)
from edge.structure.rules import Rules

MAX_PATTERN = 10_000  # characters
MAX_GROUPS = 60  # one inside the other
MAX_TIMES = 10_000  # of a repetition

DIGIT: Ranges = ((0x30, 0x39),)
WORD: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
# ECMA 262, WhiteSpace and LineTerminator, without U+FEFF: that is white space there and none in Python
SPACE: Ranges = (
    *((0x09, 0x0D), (0x20, 0x20), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A)),
    *((0x2028, 0x2029), (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000)),
)
LINES: Ranges = ((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029))  # what `.` leaves out
CLASSES = {
    **{"d": DIGIT, "D": outside(DIGIT), "w": WORD, "W": outside(WORD)},
    **{"s": SPACE, "S": outside((*SPACE, (0xFEFF, 0xFEFF)))},
}
CONTROLS = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13, "a": 7, "0": 0}
HEX = {"x": 2, "u": 4, "U": 8}
ANYTHING = Repeat(ANY, 0, None)


def regex_automaton(pattern: str) -> Dfa:
    """The texts that match `pattern` from their first to their last character, as far as a model can write them.

    `\\d \\w \\s` mean ASCII digits, ASCII word characters and ECMA's white space. Raises RequestError for what is no
    regular expression, is not regular (lookaround, backreferences) or accepts nothing.
    """
    found = compiled(parsed(pattern), SHOWN)
    if found.empty:
        raise RequestError("the regular expression matches no text", hint="check its character classes")
    return found


def regex_grammar(pattern: str) -> str:
    """GBNF of the texts of `regex_automaton`. Raises RequestError as that does, and for a grammar that is too large."""
    return automaton_grammar(regex_automaton(pattern))


def automaton_grammar(found: Dfa) -> str:
    """GBNF of the texts that an automaton accepts."""
    rules = Rules()
    rules.add("root", [[rules.automaton(found)]])
    return rules.text()


def parsed(pattern: str, *, search: bool = False) -> Node:
    """The expression that a pattern describes; with `search`, of all texts that hold a match somewhere."""
    if len(pattern) > MAX_PATTERN:
        raise RequestError(
            f"the regular expression has {len(pattern)} characters", hint=f"at most {MAX_PATTERN} are read"
        )
    return _Parser(pattern, search).whole()


class _Parser:
    def __init__(self, pattern: str, search: bool) -> None:
        self.pattern = pattern
        self.search = search
        self.at = 0
        self.depth = 0

    def wrong(self, what: str, hint: str, at: int | None = None) -> RequestError:
        place = (self.at if at is None else at) + 1
        return RequestError(f"the regular expression has {what} at character {place}", hint=hint)

    def peek(self) -> str:
        return self.pattern[self.at : self.at + 1]

    def take(self, text: str) -> bool:
        if self.pattern.startswith(text, self.at):
            self.at += len(text)
            return True
        return False

    def whole(self) -> Node:
        found = self.alternatives(begins=True, ends=True)
        if self.at < len(self.pattern):
            raise self.wrong("a ) that closes nothing", r"a parenthesis itself is written \)")
        return found

    def alternatives(self, *, begins: bool, ends: bool) -> Node:
        """Branches up to a closing parenthesis; `begins` and `ends` where an anchor may stand in them."""
        branches = [self.branch(begins, ends)]
        while self.take("|"):
            branches.append(self.branch(begins, ends))
        return branches[0] if len(branches) == 1 else Alt(tuple(branches))

    def branch(self, begins: bool, ends: bool) -> Node:
        """A sequence. An anchor holds it to an end of the text; where there is none, anything may stand there."""
        anchored = False
        while begins and self.take("^"):
            anchored = True
        parts: list[Node] = []
        if self.spanning():  # the group is all there is: its own branches may be anchored
            return self.group(begins=True, ends=True)
        closed = False
        while (letter := self.peek()) and letter not in "|)":
            if letter == "$" and ends and self.pattern[self.at + 1 : self.at + 2] in ("", "|", ")", "$"):
                self.at += 1
                closed = True
                continue
            if letter in "^$":
                raise self.wrong(
                    f"an anchor {letter} inside",
                    rf"anchors stand at both ends only; write \{letter} for the character",
                )
            parts.append(self.repeated())
        if self.search and begins and not anchored:
            parts.insert(0, ANYTHING)
        if self.search and ends and not closed:
            parts.append(ANYTHING)
        return Seq(tuple(parts))

    def spanning(self) -> bool:
        """Whether a group opens here whose closing parenthesis ends the pattern."""
        if self.peek() != "(" or not self.pattern.endswith(")") or self.at:
            return False
        depth, in_class, at = 0, False, 0
        while at < len(self.pattern):
            letter = self.pattern[at]
            if letter == "\\":
                at += 1
            elif in_class:
                in_class = letter != "]"
            elif letter == "[":
                in_class = True
            else:
                depth += (letter == "(") - (letter == ")")
                if not depth:
                    return at == len(self.pattern) - 1
            at += 1
        return False

    def repeated(self) -> Node:
        """One item with what follows it: * + ? {m} {m,} {m,n}, lazy or not (the language is the same)."""
        start = self.at
        node = self.item()
        limits = self.times()
        if limits is None:
            return node
        low, top = limits
        if top is not None and top < low:
            raise self.wrong("a repetition from more to fewer times", "write the smaller number first", start)
        if max(low, top or 0) > MAX_TIMES:
            raise self.wrong("a repetition too long", f"at most {MAX_TIMES} times are read", start)
        self.take("?")
        if self.peek() in ("*", "+", "?"):
            raise self.wrong("a repetition of a repetition", "put the inner one into parentheses")
        return Repeat(node, low, top)

    def times(self) -> tuple[int, int | None] | None:
        for sign, limits in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self.take(sign):
                return limits
        if self.peek() != "{":
            return None
        end = self.pattern.find("}", self.at)
        low, comma, high = self.pattern[self.at + 1 : max(end, 0)].partition(",")
        if end < 0 or not (low + high).isdecimal() or not (low + high).isascii():
            return None  # a brace as it is
        if not low:
            raise self.wrong("a repetition without its least number", "write {0,n}")
        if len(low) > 9 or len(high) > 9:
            raise self.wrong("a repetition too long", f"at most {MAX_TIMES} times are read")
        self.at = end + 1
        return int(low), (int(high) if high else None) if comma else int(low)

    def item(self) -> Node:
        letter = self.peek()
        if letter == "(":
            return self.group(begins=False, ends=False)
        if letter == "[":
            return Chars(self.bracket())
        if letter == "\\":
            return Chars(self.escape(in_class=False))
        if letter and letter in "*+?":
            raise self.wrong(
                f"a {letter} that repeats nothing", rf"the character itself is written \{letter}"
            )
        self.at += 1
        if letter == ".":
            return Chars(outside(LINES))
        return Chars((self.point(letter),))

    def point(self, letter: str) -> Range:
        if "\ud800" <= letter <= "\udfff":
            raise self.wrong(
                "half a surrogate pair", r"write the character itself, or \U0001F600", self.at - 1
            )
        return ord(letter), ord(letter)

    def group(self, *, begins: bool, ends: bool) -> Node:
        start = self.at
        self.at += 1
        if self.take("?"):
            if self.peek() in ("=", "!") or self.pattern[self.at : self.at + 2] in ("<=", "<!"):
                raise self.wrong(
                    "a lookaround", "a grammar reads forward only: describe the text itself", start
                )
            if self.take("P="):
                raise self.wrong("a reference to a group", "a grammar cannot compare two places", start)
            if self.take("P<") or self.take("<"):
                end = self.pattern.find(">", self.at)
                if end < 0 or not self.pattern[self.at : end].isidentifier():
                    raise self.wrong("a group without a name", "write (?<name>…) or (?:…)", start)
                self.at = end + 1
            elif not self.take(":"):
                raise self.wrong(
                    "a flag or group of an unknown kind", "(?:…) and (?<name>…) are known", start
                )
        self.depth += 1
        if self.depth > MAX_GROUPS:
            raise self.wrong("groups nested too deeply", f"at most {MAX_GROUPS} are read", start)
        found = self.alternatives(begins=begins, ends=ends)
        self.depth -= 1
        if not self.take(")"):
            raise self.wrong("a ( that is not closed", r"a parenthesis itself is written \(", start)
        return found

    def bracket(self) -> Ranges:
        start = self.at
        self.at += 1
        negated = self.take("^")
        found: list[Range] = []
        while self.peek() != "]":
            if not self.peek():
                raise self.wrong("a [ that is not closed", r"a bracket itself is written \[", start)
            first = self.member()
            if self.peek() == "-" and self.pattern[self.at + 1 : self.at + 2] not in ("]", ""):
                self.at += 1
                last = self.member()
                if (
                    len(first) != 1
                    or len(last) != 1
                    or first[0][0] != first[0][1]
                    or last[0][0] != last[0][1]
                ):
                    raise self.wrong("a range between classes", r"a hyphen itself is written \-", start)
                if last[0][0] < first[0][0]:
                    raise self.wrong(
                        "a range that runs backwards", "write the smaller character first", start
                    )
                first = ((first[0][0], last[0][0]),)
            found.extend(first)
        self.at += 1
        if not found:
            raise self.wrong("an empty character class", r"a bracket itself is written \[", start)
        return outside(tuple(found)) if negated else union(found)

    def member(self) -> Ranges:
        letter = self.peek()
        if letter == "\\":
            return self.escape(in_class=True)
        if letter == "[" and self.pattern[self.at + 1 : self.at + 2] in (":", "=", "."):
            raise self.wrong("a POSIX class", r"write \d, \w or \s, or the characters")
        self.at += 1
        return (self.point(letter),)

    def escape(self, *, in_class: bool) -> Ranges:
        start = self.at
        letter = self.pattern[start + 1 : start + 2]
        self.at += 2
        if letter in CLASSES:
            return CLASSES[letter]
        if in_class and letter == "b":
            return ((8, 8),)
        if letter in HEX:
            return (self.coded(letter, start),)
        if letter == "0" and self.peek().isdecimal():
            raise self.wrong("an octal escape", r"write \x00", start)
        if letter in CONTROLS and letter:
            return ((CONTROLS[letter], CONTROLS[letter]),)
        if letter.isdecimal() or letter == "k":
            raise self.wrong("a backreference", "a grammar cannot compare two places", start)
        if not letter or letter.isalnum():
            raise self.wrong(
                rf"an escape \{letter} that is not known", r"see \d \w \s \n \t \xhh \uhhhh", start
            )
        return (self.point(letter),)

    def coded(self, letter: str, start: int) -> Range:
        """The character of \\xhh, \\uhhhh, \\u{h…}, \\Uhhhhhhhh, and of two \\u that make a surrogate pair."""
        if letter == "u" and self.take("{"):
            end = self.pattern.find("}", self.at)
            digits, self.at = self.pattern[self.at : max(end, self.at)], end + 1
        else:
            digits = self.pattern[self.at : self.at + HEX[letter]]
            self.at += HEX[letter]
            if len(digits) < HEX[letter]:
                digits = ""
        if not digits or not all(digit in "0123456789abcdefABCDEF" for digit in digits) or len(digits) > 8:
            raise self.wrong("a code that is not hexadecimal", r"write \xhh or \uhhhh", start)
        value = int(digits, 16)
        if 0xD800 <= value < 0xDC00 and letter == "u" and self.take(r"\u"):
            low = self.pattern[self.at : self.at + 4]
            self.at += 4
            try:
                value = 0x10000 + ((value - 0xD800) << 10) + int(low, 16) - 0xDC00
            except ValueError:
                value = -1
        if not 0 <= value <= 0x10FFFF or 0xD800 <= value <= 0xDFFF:
            raise self.wrong("a code that is no character", r"write \uhhhh or \U0010hhhh", start)
        return value, value
