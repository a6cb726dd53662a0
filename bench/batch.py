"""Tokens a second of a batch run, by how many rows are answered at a time.

    python -m edge.bench.batch REF [--parallel 1,2,4,8] [--rows 16] [--tokens 64] [--repetitions 3]

Prints a table in Markdown: what all answers together take, and how often that is what the first number gives, turn by
turn. The runs take turns, each with the model loaded anew; the first turn is not counted.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from edge.chat.loaded import load
from edge.errors import EdgeError, EngineError
from edge.tasks.batch import run

from .speed import Spread, spread_of

WORDS = (
    "The keeper of the lighthouse wrote in the evening what ships had gone by, and from where the wind came. "
)


@dataclass(frozen=True)
class Pace:
    """Written tokens a second at so many rows at a time, and over that at the first number, turn by turn."""

    parallel: int
    tps: Spread
    ratio: Spread


def batch(
    ref: str,
    parallel: Sequence[int] = (1, 2, 4, 8),
    *,
    rows: int = 16,
    tokens: int = 64,
    threads: int | None = None,
    repetitions: int = 3,
) -> tuple[Pace, ...]:
    """Time `rows` prompts of one to four sentences, each continued by `tokens` tokens.

    Raises what loading raises, and EngineError where a row is not answered.
    """
    turns = [[once(ref, each, rows, tokens, threads) for each in parallel] for _ in range(repetitions + 1)][
        1:
    ]
    return tuple(
        Pace(each, spread_of([turn[at] for turn in turns]), spread_of([turn[at] / turn[0] for turn in turns]))
        for at, each in enumerate(parallel)
    )


def once(ref: str, parallel: int, rows: int, tokens: int, threads: int | None) -> float:
    """Tokens a second of one run, prefill included, loading not."""
    with load(ref, ctx=tokens + 512, threads=threads, parallel=parallel) as model:
        started = perf_counter()
        results = list(run(model, prompts(rows, tokens)))
        taken = perf_counter() - started
    for result in results:
        if result.error:
            raise EngineError(f"row {result.index} was not answered: {result.error}")
    return sum(result.usage.completion_tokens for result in results) / taken


def prompts(rows: int, tokens: int) -> Iterator[dict[str, Any]]:
    """Rows that begin differently, so that no prefix is shared, and end only at their last token."""
    for at in range(rows):
        text = f"{at + 1}. {WORDS * (1 + at % 4)}"
        yield {"prompt": text, "max_tokens": tokens, "ignore_eos": True, "seed": at}


def lines(paces: Sequence[Pace]) -> list[str]:
    """The table, in Markdown: medians, with the lowest and highest."""
    found = ["| parallel | t/s | ratio |", "| ---: | ---: | ---: |"]
    for pace in paces:
        tps = f"{pace.tps.median:.1f} ({pace.tps.low:.1f}–{pace.tps.high:.1f})"
        ratio = f"{pace.ratio.median:.2f} ({pace.ratio.low:.2f}–{pace.ratio.high:.2f})"
        found.append(f"| {pace.parallel} | {tps} | {ratio} |")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m edge.bench.batch", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("ref")
    parser.add_argument("--parallel", default="1,2,4,8", help="numbers, a comma between")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repetitions", type=int, default=3)
    asked = parser.parse_args()
    try:
        parallel = [int(number) for number in asked.parallel.split(",")]
        found = batch(
            asked.ref,
            parallel,
            rows=asked.rows,
            tokens=asked.tokens,
            threads=asked.threads,
            repetitions=asked.repetitions,
        )
    except ValueError:
        parser.error(f"--parallel {asked.parallel} is no list of numbers")
    except EdgeError as error:
        parser.exit(error.exit_code, f"{error.line}\n")
    print("\n".join(lines(found)))


if __name__ == "__main__":
    main()
