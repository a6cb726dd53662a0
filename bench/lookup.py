"""What guessing ahead gains: the same answers with and without, taking turns, in one process.

    python -m edge.bench.lookup REF [--draft REF] [--tokens 160] [--rounds 5] [--only WORD]

Of each prompt: tokens a second from the first token on, with guesses over without (median of the rounds, and the
extremes), how many of the offered guesses were kept, what one costs as a share of a plain step, how much of the
answer stands in the prompt (in runs of eight tokens), and whether the tokens were the same. Answers that quote are
greedy; free talk is drawn at 0.8 with a seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

from edge.chat.loaded import LoadedModel, load
from edge.chat.template import Message
from edge.engine import Sampling
from edge.engine.speculate import MOST, Proposer

from .lookup_prompts import free, quoting

RUN = 8  # tokens in a row that are called a quotation
QUOTES = 0.5  # of an answer, from which on it counts as one that quotes


@dataclass
class Counts:
    """Guesses offered and kept, over some answers; (steps, seconds) of steps without and with guesses."""

    offered: int = 0
    kept: int = 0
    plain: tuple[int, float] = (0, 0.0)
    guessed: tuple[int, float] = (0, 0.0)

    def learn(self, offered: int, kept: int, seconds: float) -> None:
        self.offered += offered
        self.kept += kept
        if offered:
            self.guessed = (self.guessed[0] + 1, self.guessed[1] + seconds)
        else:
            self.plain = (self.plain[0] + 1, self.plain[1] + seconds)

    @property
    def share(self) -> float | None:
        """What a guess adds to a step, as a share of a plain step's time."""
        if not (self.offered and self.plain[0]):
            return None
        slower = self.guessed[1] / self.guessed[0] / (self.plain[1] / self.plain[0]) - 1
        return slower / (self.offered / self.guessed[0])


class Counted:
    """A proposer whose guesses are counted."""

    def __init__(self, inner: Proposer, counts: Counts) -> None:
        self._inner, self._counts = inner, counts

    def guess(self, tokens: Sequence[int], most: int = MOST) -> list[int]:
        return self._inner.guess(tokens, most)

    def learn(self, offered: int, accepted: int, seconds: float) -> None:
        self._counts.learn(offered, accepted, seconds)
        self._inner.learn(offered, accepted, seconds)


@dataclass(frozen=True)
class Result:
    """Of one prompt: a ratio for each round, and what the answer was like."""

    name: str
    ratios: tuple[float, ...]
    tokens: int
    counts: Counts
    quoted: float
    same: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("ref")
    parser.add_argument("--draft", help="a draft model beside lookup")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="prompts whose name contains this")
    given = parser.parse_args()
    with load(given.ref, threads=given.threads, draft=given.draft, lookup=True) as model:
        greedy = Sampling(temperature=0, max_tokens=given.tokens)
        warm = Sampling(temperature=0.8, seed=1, max_tokens=given.tokens)
        chosen = [(name, text, greedy) for name, text in quoting().items()]
        chosen += [(name, text, warm) for name, text in free().items()]
        results = []
        for name, text, sampling in chosen:
            if given.only in name:
                results.append(measure(model, name, text, sampling, given.rounds))
                print(line(results[-1]), flush=True)
    for title, of in groups(results).items():
        print(summary(title, of))


def measure(model: LoadedModel, name: str, text: str, sampling: Sampling, rounds: int) -> Result:
    """Answer one prompt with and without guesses, in turns, the first to go changing from round to round."""
    prompt = model.tokens([Message("user", text)])
    counts = Counts()
    answers: dict[bool, list[int]] = {}
    ratios = []
    answer(model, prompt, sampling)  # from here on both find the prompt computed
    for turn in range(rounds):
        pace = {}
        for guessing in (True, False) if turn % 2 else (False, True):
            with guesses(model, counts if guessing else None):
                answers[guessing], pace[guessing] = answer(model, prompt, sampling)
        ratios.append(pace[True] / pace[False])
    found = answers[False]
    return Result(
        name, tuple(ratios), len(found), counts, quoted(prompt, found), answers[True] == answers[False]
    )


def answer(model: LoadedModel, prompt: Sequence[int], sampling: Sampling) -> tuple[list[int], float]:
    """The tokens of an answer, and how many came in a second from the first on (1 where there was but one)."""
    chunks = list(model.engine.submit(prompt, sampling))
    took = chunks[-1].elapsed_s - chunks[0].elapsed_s
    return [chunk.token for chunk in chunks], (len(chunks) - 1) / took if len(chunks) > 1 else 1.0


@contextmanager
def guesses(model: LoadedModel, counts: Counts | None) -> Iterator[None]:
    """Count the guesses of an engine meanwhile, or let it have none. It has no setting for that: nobody needs one."""
    scheduler = model.engine._decoder._scheduler
    propose = scheduler._propose

    def counted(request: Any) -> Proposer | None:
        found = propose(request) if counts else None
        return Counted(found, counts) if found and counts else None

    scheduler._propose = counted
    try:
        yield
    finally:
        scheduler._propose = propose


def quoted(prompt: Sequence[int], found: Sequence[int]) -> float:
    """The share of an answer's tokens that are in a run of RUN which the prompt has, too."""
    runs = {tuple(prompt[at : at + RUN]) for at in range(len(prompt) - RUN + 1)}
    inside: set[int] = set()
    for at in range(len(found) - RUN + 1):
        if tuple(found[at : at + RUN]) in runs:
            inside.update(range(at, at + RUN))
    return len(inside) / max(1, len(found))


def groups(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Which answers did quote is seen from them: a small model does not always do what it was asked for."""
    asked = [result for result in results if not result.name.startswith("chat")]
    return {
        f"quotes (at least {QUOTES:.0%} of the answer)": [one for one in asked if one.quoted >= QUOTES],
        "asked to quote, and did less": [one for one in asked if one.quoted < QUOTES],
        "free chat": [one for one in results if one.name.startswith("chat")],
    }


def line(of: Result) -> str:
    kept = f"{of.counts.kept}/{of.counts.offered}"
    same = "same tokens" if of.same else "OTHER TOKENS"
    low, high = min(of.ratios), max(of.ratios)
    cost = "     " if of.counts.share is None else f"{of.counts.share:5.2f}"
    return (
        f"{of.name:20} {median(of.ratios):5.2f} x  ({low:.2f} to {high:.2f})  {of.tokens:4} tokens  "
        f"kept {kept:>9}  a guess costs {cost}  quoted {of.quoted:4.0%}  {same}"
    )


def summary(title: str, results: Sequence[Result]) -> str:
    if not results:
        return f"{title}: none"
    ratios = [median(result.ratios) for result in results]
    same = sum(result.same for result in results)
    return (
        f"{title}: median {median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f}), "
        f"{len(results)} prompts, {same} with the same tokens"
    )


if __name__ == "__main__":
    main()
