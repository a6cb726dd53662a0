"""What fits into a budget: how keys and values can be kept, and the longest context."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from edge.artifact import Artifact
from edge.errors import RequestError
from edge.memory import CELL_PADDING, Cache, Memory
from edge.sizes import mib

# Room for a conversation without paying for a long document; `ctx` asks for another.
DEFAULT_CONTEXT = 4096
AUTO = "auto"  # as a context: the longest that fits


@dataclass(frozen=True)
class Room:
    """A model in a budget (bytes), with so many bytes loaded `beside` it.

    caches    the ways to keep so many conversations at a time, the best first
    """

    found: Artifact
    budget: int
    beside: int
    caches: Callable[[int], tuple[Cache, ...]]

    def need(self, tokens: int, cache: Cache) -> Memory:
        """What a context of so many tokens takes, with what is beside the model."""
        alone = self.found.predict(tokens, cache, self.budget)
        weights, total = alone.weights_bytes + self.beside, alone.total_bytes + self.beside
        return replace(alone, weights_bytes=weights, total_bytes=total)

    def fits(self, tokens: int, cache: Cache) -> bool:
        return self.need(tokens, cache).total_bytes <= self.budget

    def fits_somehow(self, tokens: int, slots: int) -> bool:
        return any(self.fits(tokens, cache) for cache in self.caches(slots))

    def longest(self, cache: Cache) -> int:
        """The longest context (tokens) that fits, up to what the model was trained for; 0 where none does."""
        trained = self.found.trained
        if self.fits(trained, cache):
            return trained
        steps = range(CELL_PADDING, trained, CELL_PADDING)
        fit = bisect_right(steps, False, key=lambda tokens: not self.fits(tokens, cache))
        return steps[fit - 1] if fit else 0

    def nearest(self, context: int, parallel: int) -> str:
        """In words: how many conversations at a time fit at this context, and the longest shorter context that fits
        for as many; or that none does, and what the shortest takes."""
        fewer, shorter = range(1, parallel), range(CELL_PADDING, context, CELL_PADDING)
        slots = bisect_left(fewer, True, key=lambda slots: not self.fits_somehow(context, slots))
        tokens = bisect_left(shorter, True, key=lambda tokens: not self.fits_somehow(tokens, parallel))
        found = []
        if slots:
            at_a_time = "1 conversation" if slots == 1 else f"{slots} conversations"
            found.append(f"{at_a_time} at a time fit{'s' if slots == 1 else ''}: --parallel {slots}")
        if tokens:
            found.append(f"a context of {shorter[tokens - 1]} fits: --ctx {shorter[tokens - 1]}")
        least = min(self.need(1, cache).total_bytes for cache in self.caches(1))
        return (
            ", or ".join(found)
            or f"even the shortest context takes {mib(least)}, so pick a smaller model or level"
        )


def choose_context(trained: int, asked: int | None) -> tuple[int, str]:
    """The context in tokens where that does not depend on a budget, and its reason.

    Raises RequestError for one that the model was not trained for.
    """
    if asked is not None:
        if not 1 <= asked <= trained:
            raise RequestError(
                f"a context of {asked} is out of range", hint=f"the model was trained for 1 to {trained}"
            )
        return asked, f"context {asked}: asked for"
    if trained <= DEFAULT_CONTEXT:
        return trained, f"context {trained}: all the model was trained for"
    return DEFAULT_CONTEXT, f"context {DEFAULT_CONTEXT}: the default; the model was trained for {trained}"


def fit_context(room: Room, caches: Sequence[Cache], asked: int | str | None) -> tuple[int, str]:
    """The context in tokens, and its reason: "auto" is the longest that fits, with the best of the caches that any fits
    with. Raises RequestError for another text, and what `choose_context` raises."""
    trained = room.found.trained
    if not isinstance(asked, str):
        return choose_context(trained, asked)
    if asked != AUTO:
        raise RequestError(f"{asked!r} is not a context", hint='give a number of tokens, or "auto"')
    longest = next(filter(None, map(room.longest, caches)), 0)
    if longest == trained:
        return trained, f"context {trained}: all the model was trained for fits"
    if not longest:
        shortest = min(CELL_PADDING, trained)
        return shortest, f"context {shortest}: the shortest; no longer one fits {mib(room.budget)}"
    return (
        longest,
        f"context {longest}: the longest that fits {mib(room.budget)}; the model was trained for {trained}",
    )
