"""Which type for each tensor: the least predicted loss within a budget of bytes, or the least time within both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import gcd, sqrt

import numpy as np

from edge.errors import RequestError

STATES = 1 << 16  # budgets that are told apart; a table of a byte for each and every tensor
STEPS, RANGE = (
    14,
    1e4,
)  # halvings of the interval in which the weight of the loss is sought, and how wide it is


@dataclass(frozen=True)
class Option:
    """A type that a tensor may have: bytes in the file, what is lost (nats a token, or any sum to be least), and what
    its products take."""

    kind: str
    bytes: int
    loss: float
    seconds: float = 0.0


def solve(options: Mapping[str, Sequence[Option]], budget: int) -> dict[str, Option]:
    """One option a tensor, together at most `budget` bytes with the least sum of losses.

    Exact where STATES steps of the sizes' greatest common divisor span the budget: a knapsack with a class a tensor
    (Dudziński and Walukiewicz 1987), by dynamic programming over the bytes; coarser steps are rounded up, so the
    budget holds all the same, and what is left is spent greedily. Raises RequestError where nothing fits.
    """
    least = {name: min(option.bytes for option in of) for name, of in options.items()}
    room = budget - sum(least.values())
    if room < 0:
        raise RequestError(
            f"no option of types fits into {budget:,} bytes", hint=f"{budget - room:,} would do"
        )
    efficient = {name: frontier(of) for name, of in options.items()}
    room = min(room, sum(max(option.bytes for option in of) - least[name] for name, of in efficient.items()))
    step = gcd(*(option.bytes - least[name] for name, of in efficient.items() for option in of)) or 1
    step *= max(1, -(-room // (step * STATES)))
    states = room // step + 1
    total, taken = np.zeros(states), []
    for name, of in efficient.items():
        best, index = np.full(states, np.inf), np.zeros(states, np.uint8)
        for number, option in enumerate(of):
            more = -(-(option.bytes - least[name]) // step)
            if more < states:
                with_it = total[: states - more] + option.loss
                better = with_it < best[more:]
                best[more:][better], index[more:][better] = with_it[better], number
        total = best
        taken.append(index)
    chosen, at = {}, states - 1
    for (name, of), index in zip(reversed(efficient.items()), reversed(taken), strict=True):
        option = of[index[at]]
        chosen[name] = option
        at -= -(-(option.bytes - least[name]) // step)
    return spend({name: chosen[name] for name in options}, efficient, budget)


def fastest(options: Mapping[str, Sequence[Option]], budget: int, most: float) -> dict[str, Option]:
    """One option a tensor, at most `budget` bytes and the loss `most` together, that take nearly the least time.

    The bound of the loss is taken into the sum with a weight (Everett 1963), and the smallest weight sought that holds
    it. Where nothing holds it, the least loss. Raises as `solve`.
    """
    found = solve(options, budget)
    seconds = sum(option.seconds for option in found.values())
    if sum(option.loss for option in found.values()) > most or not seconds:
        return found
    low, high = seconds / most / RANGE, seconds / most * RANGE
    for _ in range(STEPS):
        weight = sqrt(low * high)
        sums = {
            name: [replace(option, loss=option.seconds + weight * option.loss) for option in of]
            for name, of in options.items()
        }
        kinds = {name: option.kind for name, option in solve(sums, budget).items()}
        chosen = {
            name: next(option for option in of if option.kind == kinds[name]) for name, of in options.items()
        }
        if sum(option.loss for option in chosen.values()) <= most:
            found, high = chosen, weight
        else:
            low = weight
    return found


def frontier(of: Sequence[Option]) -> list[Option]:
    """The options that none of at most as many bytes betters, smallest first."""
    found: list[Option] = []
    for option in sorted(of, key=lambda one: (one.bytes, one.loss)):
        if not found or option.loss < found[-1].loss:
            found.append(option)
    return found


def spend(
    chosen: dict[str, Option], options: Mapping[str, Sequence[Option]], budget: int
) -> dict[str, Option]:
    """What rounding left of the budget, on the steps that gain most for their bytes."""
    left = budget - sum(option.bytes for option in chosen.values())
    while True:
        steps = [
            ((chosen[name].loss - to.loss) / (to.bytes - chosen[name].bytes), name, to)
            for name, of in options.items()
            for to in of
            if to.loss < chosen[name].loss and 0 < to.bytes - chosen[name].bytes <= left
        ]
        if not steps:
            return chosen
        _, name, to = max(steps, key=lambda step: step[:2])
        left -= to.bytes - chosen[name].bytes
        chosen[name] = to
