"""Ranges of numbers as automata over their digits."""

from __future__ import annotations

from decimal import Decimal

from edge.errors import RequestError
from edge.structure.automaton import Alt, Dfa, Node, Repeat, Seq, both, char, compiled, word

MAX_DIGITS = 20  # before the point and behind it: 2^64 has 20, and a model must not spin in digits for ever
EXACT = 15  # significant decimal digits that a double keeps (IEEE 754 binary64)

LARGEST = Decimal(10) ** MAX_DIGITS

DIGIT = char("0", "9")
DIGITS = Repeat(DIGIT, 0, None)
NATURAL = Alt((char("0"), Seq((char("1", "9"), Repeat(DIGIT, 0, MAX_DIGITS - 1)))))
MINUS = Repeat(char("-"), 0, 1)


def integers(low: int | None, high: int | None) -> Dfa:
    """The whole numbers from `low` to `high`, of at most 20 digits, without leading zeros or a point."""
    found = compiled(Alt((char("0"), Seq((MINUS, char("1", "9"), Repeat(DIGIT, 0, MAX_DIGITS - 1))))))
    return within(
        found, Decimal(low) if low is not None else None, Decimal(high) if high is not None else None
    )


def decimals(low: Decimal | None, high: Decimal | None, *, low_open: bool, high_open: bool) -> Dfa:
    """Numbers from `low` to `high`; an open end is not part of it.

    Without limits there may be an exponent that a double can hold. With one there is none, and so few digits behind
    the point that rounding to a double cannot lead across it.
    """
    if low is None and high is None:
        sign, power = Repeat(Alt((char("+"), char("-"))), 0, 1), Alt((char("e"), char("E")))
        fraction = Repeat(Seq((char("."), Repeat(DIGIT, 1, MAX_DIGITS))), 0, 1)
        short = Seq((MINUS, NATURAL, fraction, Repeat(Seq((power, sign, Repeat(DIGIT, 1, 2))), 0, 1)))
        long = Seq((MINUS, char("1", "9"), fraction, power, sign, char("1", "2"), DIGIT, DIGIT))
        return compiled(Alt((short, long)))
    split = [parts(abs(bound)) for bound in (low, high) if bound is not None and abs(bound) < LARGEST]
    split = split or [("0", "")]
    whole, behind = max(len(before) for before, _ in split), max(len(after) for _, after in split)
    places = max(behind, EXACT - whole, 1)
    found = compiled(Seq((MINUS, NATURAL, Repeat(Seq((char("."), Repeat(DIGIT, 1, places))), 0, 1))))
    return within(found, low, high, low_open=low_open, high_open=high_open)


def within(
    found: Dfa, low: Decimal | None, high: Decimal | None, *, low_open: bool = False, high_open: bool = False
) -> Dfa:
    """Those numbers of `found` that lie between the limits; a limit beyond all numbers there are limits nothing."""
    if (low is not None and low >= LARGEST) or (high is not None and high <= -LARGEST):
        raise RequestError(
            f"the schema asks for a number of more than {MAX_DIGITS} digits", hint="use a nearer limit"
        )
    low = low if low is None or low > -LARGEST else None
    high = high if high is None or high < LARGEST else None
    if low is not None:
        negative = low < 0
        other = less(-low, low_open) if negative else more(low, low_open)
        above: Node = Alt((more(Decimal(0), False), Seq((char("-"), other)))) if negative else other
        found = both(found, compiled(above))
    if high is not None:
        negative = high < 0 or (high == 0 and high_open)
        other = more(-high, high_open) if negative else less(high, high_open)
        below: Node = (
            Seq((char("-"), other)) if negative else Alt((other, Seq((char("-"), more(Decimal(0), False)))))
        )
        found = both(found, compiled(below))
    return found


def parts(bound: Decimal) -> tuple[str, str]:
    """The digits before and behind the point, the latter without zeros at their end."""
    before, _, after = f"{bound:f}".partition(".")
    return before.lstrip("0") or "0", after.rstrip("0")


def more(bound: Decimal, strict: bool) -> Node:
    """Numbers without a sign from `bound` on; leading zeros are sorted out by whoever intersects."""
    before, after = parts(bound)
    fraction = Repeat(Seq((char("."), DIGITS)), 0, 1)
    larger = [
        Seq((above(before), fraction)),
        Seq((char("1", "9"), Repeat(DIGIT, len(before), None), fraction)),
    ]
    same: Node = Seq((char("."), tail_above(after, strict)))
    if not after and not strict:
        same = fraction
    return Alt((*larger, Seq((word(before), same))))


def less(bound: Decimal, strict: bool) -> Node:
    """Numbers without a sign up to `bound`."""
    before, after = parts(bound)
    fraction = Repeat(Seq((char("."), DIGITS)), 0, 1)
    smaller = [Seq((below(before), fraction))]
    if len(before) > 1:
        smaller.append(Seq((Repeat(DIGIT, 1, len(before) - 1), fraction)))
    same: list[Node] = [Seq((char("."), tail_below(after, strict)))]
    if after or not strict:
        same.append(Seq())
    return Alt((*smaller, Seq((word(before), Alt(tuple(same))))))


def above(digits: str) -> Node:
    """Texts of as many digits that are larger."""
    found: list[Node] = []
    for at, digit in enumerate(digits):
        if digit != "9":
            rest = Repeat(DIGIT, len(digits) - at - 1, len(digits) - at - 1)
            found.append(Seq((word(digits[:at]), char(chr(ord(digit) + 1), "9"), rest)))
    return Alt(tuple(found))


def below(digits: str) -> Node:
    """Texts of as many digits that are smaller."""
    found: list[Node] = []
    for at, digit in enumerate(digits):
        if digit != "0":
            rest = Repeat(DIGIT, len(digits) - at - 1, len(digits) - at - 1)
            found.append(Seq((word(digits[:at]), char("0", chr(ord(digit) - 1)), rest)))
    return Alt(tuple(found))


def tail_above(digits: str, strict: bool) -> Node:
    """Digits behind the point that say as much as `digits` or more."""
    found: list[Node] = [
        Seq((word(digits[:at]), char(chr(ord(digit) + 1), "9"), DIGITS))
        for at, digit in enumerate(digits)
        if digit != "9"
    ]
    found.append(Seq((word(digits), DIGITS, char("1", "9"), DIGITS) if strict else (word(digits), DIGITS)))
    return Alt(tuple(found))


def tail_below(digits: str, strict: bool) -> Node:
    """Digits behind the point that say as much as `digits` or less."""
    found: list[Node] = []
    for at, digit in enumerate(digits):
        if digit != "0":
            found.append(Seq((word(digits[:at]), char("0", chr(ord(digit) - 1)), DIGITS)))
        if at:
            found.append(word(digits[:at]))
    if not strict:
        found.append(Seq((word(digits), Repeat(char("0"), 0, None))))
    return Alt(tuple(found))
