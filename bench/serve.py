"""Several requests at once: tokens a second of all together, and time to the first token of each.

    EDGE_PEERS=DIR EDGE_LLAMA_CPP_SERVER=VENV/bin/python \\
        python -m edge.bench.serve REF [--sequences 1,2,4,8,16] [--tokens 64] [--repetitions 5] [--minutes 7]

Ours answers in its own process (`edge.bench.serve_work`), the servers over HTTP on this machine, streamed; every
request has another prompt, of 40 to 75 tokens, the same for all runtimes, and all are sent at once. Answers are greedy,
nothing is speculated, and they go on to their last token. Each number of sequences has an engine and a llama-server
with exactly so many slots, all loaded at once; the runtimes take turns, and ratios are taken turn by turn.
llama_cpp.server answers one request at a time whatever comes, so there is one of it. The first turn is short and not
counted; no turn begins after `--minutes`.
Prints Markdown.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from edge.errors import EdgeError
from edge.planner import Plan, plan

from .record import Row, Spread, spread_of
from .runtimes import check_gguf, check_writes, threads_of
from .serve_load import Load, prompts
from .serve_runtimes import ONE_AT_A_TIME, PEERS, Ours, Runtime

OURS = "edge"
ROOM = 448  # tokens of context a conversation beyond its answer
WARM_TOKENS = 4


@dataclass(frozen=True)
class Figures:
    """One runtime answering so many requests at once.

    tps       tokens of all answers a second, prefill included
    ttft_s    median of the requests' times to first token
    faster    our tokens a second over its own, turn by turn
    sooner    its time to first token over ours, turn by turn
    client    processor time of the process with the clients, in cores
    """

    sequences: int
    runtime: str
    tps: Spread
    ttft_s: Spread
    faster: Spread
    sooner: Spread
    client: float


@dataclass(frozen=True)
class Report:
    """`growth` is our tokens a second at each number of sequences over those at the number before, turn by turn."""

    plan: Plan
    turns: int
    figures: tuple[Figures, ...]
    growth: Mapping[int, Spread]


def serve(
    ref: str,
    sequences: Sequence[int],
    peers: Sequence[str] = (),
    *,
    tokens: int = 64,
    threads: int | None = None,
    repetitions: int = 5,
    minutes: float = 7,
) -> Report:
    """Measure `ref` here and through each of `peers`, names of `PEERS`.

    Raises what `plan` raises, DoesNotFit, RequestError for a model that continues no text or that a peer cannot read,
    EngineError where a peer is missing or fails.
    """
    until = time.monotonic() + 60 * minutes
    plans = {
        count: plan(ref, ctx=ROOM + tokens, threads=threads, parallel=count).require_fit()
        for count in sequences
    }
    check_writes(plans[sequences[0]])
    for peer in peers:
        check_gguf(plans[sequences[0]], peer)
    with ExitStack() as stack:
        runtimes: dict[tuple[int, str], Runtime] = {}
        for count, decided in plans.items():
            runtimes[count, OURS] = stack.enter_context(closing(Ours(decided)))
            for peer in peers:
                same = runtimes.get((sequences[0], peer)) if peer in ONE_AT_A_TIME else None
                runtimes[count, peer] = same or stack.enter_context(closing(PEERS[peer](decided)))
        turns: list[dict[tuple[int, str], Load]] = []
        for turn in range(repetitions + 1):
            if len(turns) > 1 and time.monotonic() > until:
                break
            new = tokens if turn else WARM_TOKENS
            turns.append({})
            for (count, name), runtime in runtimes.items():
                turns[-1][count, name] = runtime.turn(prompts(count, 100 * turn + count), new)
            say(turn, repetitions)
    counted = turns[1:]
    return Report(
        plans[sequences[0]],
        len(counted),
        tuple(figures(key, [(turn[key], turn[key[0], OURS]) for turn in counted]) for key in runtimes),
        {
            count: spread_of([tps(turn[count, OURS]) / tps(turn[before, OURS]) for turn in counted])
            for before, count in pairwise(sequences)
        },
    )


def figures(key: tuple[int, str], pairs: Sequence[tuple[Load, Load]]) -> Figures:
    """What a runtime's turns come to; each pair is its load and ours of the same turn."""
    loads = [load for load, _ in pairs]
    return Figures(
        *key,
        tps=spread_of([tps(load) for load in loads]),
        ttft_s=spread_of([median(load.ttft_s) for load in loads]),
        faster=spread_of([tps(ours) / tps(load) for load, ours in pairs]),
        sooner=spread_of([median(load.ttft_s) / median(ours.ttft_s) for load, ours in pairs]),
        client=median(load.cpu_s / load.seconds for load in loads),
    )


def tps(load: Load) -> float:
    """Tokens of all answers a second."""
    return load.tokens / load.seconds


def rows(report: Report) -> list[Row]:
    """A row for each runtime and number of requests; `growth` stands in ours."""
    found = []
    for one in report.figures:
        figures = {name: value for name, value in vars(one).items() if name != "runtime"}
        if one.runtime == OURS:
            mine = {
                "faster": None,
                "sooner": None,
                "client": None,
                "growth": report.growth.get(one.sequences),
            }
            figures |= mine
        found.append(Row(f"{one.runtime} {one.sequences}", figures))
    return found


def say(turn: int, of: int) -> None:
    """How far it is, for whoever waits at a terminal."""
    if sys.stderr.isatty():
        print(f"turn {turn} of {of}", file=sys.stderr)


def lines(report: Report) -> list[str]:
    """The tables, in Markdown: medians, with the lowest and highest."""
    found = [
        f"{report.plan.artifact}, {threads_of(report.plan)} threads, {report.turns} turns",
        "",
        "| requests at once | runtime | t/s | ours is faster by | TTFT p50 ms | ours is sooner by | client, cores |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in report.figures:
        ours = one.runtime == OURS
        cells = [
            str(one.sequences),
            one.runtime,
            one.tps.shown(1),
            "" if ours else one.faster.shown(2),
            one.ttft_s.shown(0, 1000),
            "" if ours else one.sooner.shown(2),
            "" if ours else f"{one.client:.3f}",
        ]
        found.append(f"| {' | '.join(cells)} |")
    grown = ", ".join(f"at {count} {spread.shown(2)}" for count, spread in report.growth.items())
    return [*found, "", f"Ours over the row of ours before: {grown}."] if grown else found


def numbers(text: str) -> list[int]:
    """Whole numbers from 1, a comma between. Raises ValueError."""
    found = [int(number) for number in text.split(",")]
    if min(found) < 1 or len(set(found)) < len(found):
        raise ValueError(text)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m edge.bench.serve", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("ref")
    parser.add_argument("--sequences", type=numbers, default=[1, 2, 4, 8, 16], help="requests at once")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=7, help="begin no turn after so long")
    parser.add_argument("--vs", action="append", choices=list(PEERS), help="only these peers")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the servers are ended with it
    try:
        report = serve(
            asked.ref,
            asked.sequences,
            list(PEERS) if asked.vs is None else asked.vs,
            tokens=asked.tokens,
            threads=asked.threads,
            repetitions=asked.repetitions,
            minutes=asked.minutes,
        )
    except EdgeError as error:
        parser.exit(error.exit_code, f"{error.line}\n")
    print("\n".join(lines(report)))


if __name__ == "__main__":
    main()
