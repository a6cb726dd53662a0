"""Prefill and decode rates, time to first token and peak memory; a peer does the same work in the same run.

Each runtime lives in a process of its own. They take turns, so that a slow minute of the machine hits all of
them. Prefill is 512 random tokens and one answer token; decode is 128 tokens after a prompt of 8, greedy, as
llama-bench's pp512 and tg128 are (its tg128 starts from an empty context).
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from statistics import median
from typing import Any

from edge.errors import EngineError, RequestError
from edge.planner import Plan, plan

from .child import python_m
from .llama_bench import llama_bench

PREFILL_TOKENS, DECODE_TOKENS, SHORT_PROMPT = 512, 128, 8
CONTEXT = 1024


@dataclass(frozen=True)
class Spread:
    """Median of the repetitions, with the extremes."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Speed:
    """One runtime's figures: tokens a second, seconds, bytes. None where a runtime does not tell."""

    runtime: str
    prefill_tps: Spread
    decode_tps: Spread
    ttft_s: Spread | None
    peak_rss_bytes: int | None


@dataclass(frozen=True)
class Report:
    """All runtimes' figures for one file, and ours over each peer's, turn by turn (above 1: ours is better)."""

    plan: Plan
    speeds: tuple[Speed, ...]
    ratios: dict[str, dict[str, Spread]]


def speed(
    ref: str, peers: tuple[str, ...] = (), *, threads: int | None = None, repetitions: int = 5
) -> Report:
    """Measure `ref` here and through each of `peers`, "llama-cpp-python" or "llama-bench".

    Raises what `plan` raises, DoesNotFit, EngineError, RequestError for a model with too short a context.
    """
    decided = plan(ref, threads=threads)
    if decided.context > CONTEXT:
        decided = plan(ref, ctx=CONTEXT, threads=threads)
    if decided.context < PREFILL_TOKENS + DECODE_TOKENS:
        raise RequestError(
            f"a context of {decided.context} is too short to measure",
            hint=f"it takes {PREFILL_TOKENS + DECODE_TOKENS} tokens",
        )
    decided.require_fit()
    names = ("edge", *peers)
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(Worker(name, decided)) for name in names if name != "llama-bench"
        }
        for turn in range(repetitions + 1):
            for name in names:
                taken = llama_bench(decided) if name == "llama-bench" else workers[name].turn(turn)
                if turn:  # the first turn warms the page cache and the allocator
                    samples[name].append(taken)
    speeds = tuple(summary(name, samples[name]) for name in names)
    return Report(decided, speeds, {peer: ratios(samples["edge"], samples[peer]) for peer in peers})


class Worker:
    """A `python -m edge.bench.work` process with the model loaded; a context manager."""

    def __init__(self, runtime: str, decided: Plan) -> None:
        command = python_m("edge.bench.work", runtime, str(decided.path))
        command += [str(decided.threads.decode), str(decided.context)]
        self._runtime = runtime
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            self._read()
        except EngineError:
            self.__exit__()
            raise

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process, suppress(BrokenPipeError):  # closes both pipes, which ends it, and waits
            pass

    def turn(self, number: int, prompt: int = PREFILL_TOKENS, new: int = DECODE_TOKENS) -> dict[str, float]:
        """One prefill of `prompt` tokens and one decode of `new` (more than 1), as rates.

        Raises EngineError where the runtime ends, or its answer after one token.
        """
        first = self._order(prompt, 1, 2 * number)
        long = self._order(SHORT_PROMPT, new, 2 * number + 1)
        if long["tokens"] < 2:
            raise EngineError(
                f"{self._runtime} ended its answer after one token", hint="measure another model"
            )
        return {
            "prefill_tps": prompt / first["ttft_s"],
            "decode_tps": (long["tokens"] - 1) / (long["total_s"] - long["ttft_s"]),
            "ttft_s": first["ttft_s"],
            "peak_rss_bytes": long["peak_rss_bytes"],
        }

    def _order(self, prompt: int, new: int, seed: int) -> Any:
        assert self._process.stdin
        with suppress(BrokenPipeError):  # it is gone; reading says so
            self._process.stdin.write(f"{prompt} {new} {seed}\n")
            self._process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise EngineError(
                f"{self._runtime} ended before its work was done", hint="its last words are above"
            )
        return json.loads(line)


def summary(runtime: str, samples: list[dict[str, float]]) -> Speed:
    """Medians and extremes of the repetitions."""

    def spread(key: str) -> Spread:
        return spread_of([sample[key] for sample in samples])

    known = samples[0]
    return Speed(
        runtime,
        spread("prefill_tps"),
        spread("decode_tps"),
        spread("ttft_s") if "ttft_s" in known else None,
        int(max(sample["peak_rss_bytes"] for sample in samples)) if "peak_rss_bytes" in known else None,
    )


def spread_of(values: Sequence[float]) -> Spread:
    """Median, least and greatest."""
    return Spread(median(values), min(values), max(values))


def ratios(ours: Sequence[dict[str, float]], peer: Sequence[dict[str, float]]) -> dict[str, Spread]:
    """Ours over the peer's, turn by turn; times and bytes turned so that above 1 is better for us.

    The two measurements of a turn follow each other, so a machine that slows down slows both.
    """

    def paired(key: str, *, less_is_better: bool) -> Spread:
        pairs = [
            (theirs[key], mine[key]) if less_is_better else (mine[key], theirs[key])
            for mine, theirs in zip(ours, peer, strict=True)
        ]
        return spread_of([above / below for above, below in pairs])

    found = {
        "prefill": paired("prefill_tps", less_is_better=False),
        "decode": paired("decode_tps", less_is_better=False),
    }
    for name, key in (("ttft", "ttft_s"), ("peak_rss", "peak_rss_bytes")):
        if key in peer[0]:
            found[name] = paired(key, less_is_better=True)
    return found
