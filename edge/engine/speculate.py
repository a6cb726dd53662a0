"""Guessing ahead: what a proposer offers is decoded in one step with the last token, and kept only where drawn.

A step's time is `one + guesses · row`: on machines bound by memory's bandwidth a guess costs next to nothing, on this
project's two cores with Q4_1 a quarter to a third of a step. So both are measured, never assumed, and `best` decides.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

MOST = 15  # guesses a step; more gained nothing in simulation, and a step has LOGITS_ROWS
MARGIN = 1.05  # how much faster a step must promise to be, as what it promises from is estimated
SHORTEST, LONGEST = 2, 32  # tokens of a match: to be looked at, and to be told apart
CANDIDATES = 16  # earlier places that are compared, the latest first
# The chance that a match of so many tokens goes on, before this answer has shown its own: a little less than free
# chat shows, so that what is tried first pays there too.
PRIOR = ((2, 0.3), (3, 0.4), (4, 0.5), (6, 0.6), (9, 0.8), (17, 0.9))
WEIGHT = 6.0  # observations that the prior counts as
FORGET = 0.95  # what an observation still counts after the next one of its kind


class Proposer(Protocol):
    """Guesses for one request."""

    def guess(self, tokens: Sequence[int], most: int = MOST) -> list[int]:
        """Up to `most` tokens that may follow `tokens`, the prompt and the answer so far; none where it would not pay.

        From call to call `tokens` only grows; calls may be left out.
        """
        ...

    def learn(self, offered: int, accepted: int, seconds: float) -> None:
        """What came of a step of one sequence alone: guesses decoded (0 in a plain step), kept, seconds it all took."""
        ...


@dataclass
class Pace:
    """Seconds of a step by its rows, measured over all requests of an engine: `one` row, and each `row` beyond it.

    Both are running means in which one stall (another process, a page fault) counts as twice the mean at most.
    """

    one: float = 0.0
    share: float = 1 / 3  # row / one; the start is a cautious guess

    def learn(self, offered: int, seconds: float) -> None:
        """Take a step's time into account."""
        if not self.one:
            self.one = seconds / (1 + offered * self.share)
        if offered:
            seen = min(max(0.0, (seconds / self.one - 1) / offered), 2 * self.share + 0.1)
            self.share += (seen - self.share) / 16
        else:
            self.one += (min(seconds, 2 * self.one) - self.one) / 16
            # Too dear by a stall, guesses would never be tried and corrected: it wears off in some hundred steps.
            self.share += (1 / 3 - self.share) / 512 if self.share > 1 / 3 else 0.0


class Chances:
    """How often guesses of a kind were right, a kind being all values from one of the bounds in `prior` to the next.

    `prior` is (bound, chance) in rising order, the chance standing until a kind has shown its own.
    """

    def __init__(self, prior: Sequence[tuple[float, float]]) -> None:
        self._bounds = [bound for bound, _ in prior]
        self._right = [WEIGHT * chance for _, chance in prior]
        self._seen = [WEIGHT] * len(prior)

    def of(self, value: float) -> float:
        """The chance that a guess of this value is right."""
        kind = self._kind(value)
        return self._right[kind] / self._seen[kind]

    def learn(self, value: float, right: bool) -> None:
        """Take one guess into account."""
        kind = self._kind(value)
        self._right[kind] = self._right[kind] * FORGET + right
        self._seen[kind] = self._seen[kind] * FORGET + 1

    def _kind(self, value: float) -> int:
        return max(0, bisect_right(self._bounds, value) - 1)


def best(chances: Iterable[float], share: float) -> int:
    """How many guesses make a step the fastest: the k with the most tokens expected in a unit of time.

    With a_i the chance that guess i is right if those before were, a step of k guesses yields
    1 + a_1 + a_1·a_2 + … + a_1·…·a_k tokens in 1 + k·share times a plain step's time, since guesses count
    up to the first wrong one (Leviathan et al. 2023, https://arxiv.org/abs/2211.17192, section 3.3).
    0 where no k promises MARGIN.
    """
    found, top, right, tokens = 0, MARGIN, 1.0, 1.0
    for k, chance in enumerate(chances, 1):
        right *= chance
        tokens += right
        pace = tokens / (1 + k * share)
        if pace > top:
            found, top = k, pace
        if right < share:  # no later guess pays for itself
            break
    return found


class PromptLookup:
    """Guesses that the text goes on as it did after the longest, latest match of its last tokens.

    Each token is compared with what would have been guessed whether or not it was offered, so acceptance is learned
    for nothing: the gate needs no trials. The chance is kept by the length of the match, which grows with each guess
    that comes true. A step costs an entry in a table and, where no match is being followed, CANDIDATES comparisons;
    the prompt is read at the first call, so a request that never has the engine to itself pays nothing.
    """

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._tokens = array("i")
        # SHORTEST tokens → the place after their latest occurrence; by place, that of the one before, or -1
        self._last: dict[tuple[int, ...], int] = {}
        self._before = array("i")
        # The place that is being followed, or -1, and how many tokens before it match
        self._source, self._length = -1, 0
        self._chances = Chances(PRIOR)

    def guess(self, tokens: Sequence[int], most: int = MOST) -> list[int]:
        """See Proposer."""
        self._extend(tokens[len(self._tokens) :])
        if self._source < 0:
            return []
        chances = (self._chances.of(self._length + i) for i in range(min(most, MOST)))
        period = len(self._tokens) - self._source  # beyond what is known, the text repeats itself
        return [self._tokens[self._source + i % period] for i in range(best(chances, self._pace.share))]

    def learn(self, offered: int, accepted: int, seconds: float) -> None:
        """See Proposer. Which guesses were right the next call's tokens say; here only the time counts."""
        self._pace.learn(offered, seconds)

    def _extend(self, tokens: Sequence[int]) -> None:
        last = len(tokens) - 1
        for i, token in enumerate(tokens):
            if self._source >= 0:
                self._follow(token)
            self._tokens.append(token)
            gram = tuple(self._tokens[-SHORTEST:])
            before = self._last.get(gram, -1)
            self._before.append(before)
            self._last[gram] = len(self._tokens)
            if i == last and self._source < 0:
                self._find(before)

    def _follow(self, token: int) -> None:
        """Learn from the token that came whether the match went on, and leave it where it did not."""
        right = self._tokens[self._source] == token
        self._chances.learn(self._length, right)
        self._source, self._length = (self._source + 1, self._length + 1) if right else (-1, 0)

    def _find(self, place: int) -> None:
        """Follow the longest of the latest matches, beginning with the one that ends at `place`."""
        tokens, end = self._tokens, len(self._tokens)
        for _ in range(CANDIDATES):
            if place < 0:
                break
            length = SHORTEST
            while length < min(LONGEST, place) and tokens[place - length - 1] == tokens[end - length - 1]:
                length += 1
            if length > self._length:
                self._source, self._length = place, length
            place = self._before[place - 1]
