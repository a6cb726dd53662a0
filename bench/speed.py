"""Prefill and decode rates, time to first token and peak memory; a peer does the same work in the same run.

Each runtime lives in a process of its own. They take turns, so that a slow minute of the machine hits all of
them. Prefill is 512 random tokens and one answer token, unless another number is asked for; decode is 128 tokens
after a prompt of 8, greedy, as llama-bench's pp512 and tg128 are (its tg128 starts from an empty context).
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import Any

from edge import gguf_header, rates
from edge.errors import EngineError, RequestError
from edge.machine import host
from edge.machine.energy import Meter
from edge.machine.heat import celsius
from edge.machine.system import here
from edge.planner import Plan, plan
from edge.speed import matrices

from .llama_bench import llama_bench
from .record import Spread as Spread  # what the other benchmarks take from here
from .record import spread_of as spread_of
from .runtimes import LLAMA_BENCH, OURS, PEERS, Versus, check, check_writes, command, versus

PREFILL_TOKENS, DECODE_TOKENS, SHORT_PROMPT = 512, 128, 8
CONTEXT = 1024

Point = tuple[float, float]  # seconds, and what was read then
Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much


@dataclass(frozen=True)
class Speed:
    """One runtime's figures: tokens a second, seconds, bytes. None where a runtime or the machine does not tell.

    bandwidth_share                the weights a token reads × tokens a second, over the measured bandwidth of memory
    prefill_joules, decode_joules  of the whole machine or processor for each token
    """

    runtime: str
    prefill_tps: Spread
    decode_tps: Spread
    ttft_s: Spread | None
    peak_rss_bytes: int | None
    bandwidth_share: Spread | None = None
    prefill_joules: Spread | None = None
    decode_joules: Spread | None = None


@dataclass(frozen=True)
class Report:
    """All runtimes' figures for one file, and ours over each peer's, turn by turn (above 1: ours is better).

    course  by runtime each turn's tokens a second while decoding, over the seconds since the first counted turn began
    heat    °C over the same seconds; empty where the machine does not tell
    energy  what counted the joules, or why nothing did
    """

    plan: Plan
    speeds: tuple[Speed, ...]
    ratios: dict[str, dict[str, Spread]]
    course: Mapping[str, tuple[tuple[Point, ...], ...]] = field(default_factory=dict)
    heat: tuple[Point, ...] = ()
    energy: str = ""


def planned(
    ref: str,
    peers: Sequence[Versus],
    *,
    threads: int | None,
    prompt: int = PREFILL_TOKENS,
    new: int = DECODE_TOKENS,
) -> Plan:
    """The plan that a measurement goes by. Raises what `plan` raises, DoesNotFit, RequestError for a model that
    continues no text or has too short a context, and for a peer that cannot read it, EngineError for one that is not
    here."""
    decided = plan(ref, threads=threads)
    check_writes(decided)
    needed = max(prompt + 1, SHORT_PROMPT + new)
    if decided.context > max(CONTEXT, needed):
        decided = plan(ref, ctx=max(CONTEXT, needed), threads=threads)
    if decided.context < needed:
        try:
            decided = plan(
                ref, ctx=needed, threads=threads
            )  # what plans take by themselves may be less than can be
        except RequestError as error:
            raise RequestError(
                f"a context of {decided.context} is too short to measure",
                hint=f"it takes {needed} tokens; ask for fewer with --prompt and --new",
            ) from error
    check(peers, decided)
    return decided.require_fit()


def speed(
    ref: str,
    peers: tuple[str, ...] = (),
    *,
    threads: int | None = None,
    repetitions: int = 5,
    prompt: int = PREFILL_TOKENS,
    new: int = DECODE_TOKENS,
    progress: Progress = lambda doing, done, total: None,
) -> Report:
    """Measure `ref` here and through each of `peers`, names of `runtimes.PEERS` or NAME=PATH: a prefill of `prompt`
    tokens and a decode of `new`, more than 1.

    Raises what `planned` raises, EngineError for a peer that is not here or fails.
    """
    others = [versus(peer) for peer in peers]
    decided = planned(ref, others, threads=threads, prompt=prompt, new=new)
    names = (OURS, *(peer.name for peer in others))
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    course: dict[str, list[tuple[Point, ...]]] = {name: [] for name in names}
    heat: list[Point] = []
    with ExitStack() as stack:
        workers = {
            peer.name: stack.enter_context(Worker(peer.name, decided, peer.path))
            for peer in (Versus(OURS), *others)
            if peer.name != LLAMA_BENCH
        }
        started = monotonic()
        for turn in range(repetitions + 1):
            if turn == 1:  # the first turn warms the page cache and the allocator
                started = monotonic()
            for name in names:
                progress(f"{decided.artifact}, {' and '.join(names)}", turn, repetitions + 1)
                warmth = [(monotonic(), celsius(here()))]
                if name == LLAMA_BENCH:
                    taken = llama_bench(decided, prompt, new)
                    points: tuple[Point, ...] = ((monotonic(), taken["decode_tps"]),)
                else:
                    taken, points = workers[name].turn(turn, prompt, new), workers[name].course
                if turn:
                    samples[name].append(taken)
                    course[name].append(tuple((at - started, tps) for at, tps in points))
                    warmth.append((monotonic(), celsius(here())))
                    heat += [(at - started, degrees) for at, degrees in warmth if degrees is not None]
        progress(f"{decided.artifact}, {' and '.join(names)}", repetitions + 1, repetitions + 1)
    read = reading_seconds(decided)
    return Report(
        decided,
        tuple(
            summary(name, samples[name], 0 if name in PEERS and PEERS[name].reads else read) for name in names
        ),
        {peer.name: ratios(samples[OURS], samples[peer.name]) for peer in others},
        {name: tuple(turns) for name, turns in course.items()},
        tuple(heat),
        workers[OURS].energy,
    )


def reading_seconds(decided: Plan) -> float:
    """Bytes of weights that decoding a token reads, over the bytes a second that memory was measured to give: the
    seconds a token takes at least. 0 where nothing was measured, or of a model that is no GGUF file.
    """
    measured = rates.load(host())
    if measured is None or not decided.backend.startswith("llama.cpp"):
        return 0
    header = gguf_header.read(decided.path)
    return sum(tensor.bytes * share for tensor, share in matrices(header)) / measured.peak_bandwidth


class Worker:
    """A runtime's process with the model loaded; a context manager.

    course  tokens a second of the last decode, by the system's clock
    energy  what counted the last decode's joules, or why nothing did

    Raises EngineError where the runtime is not here or does not load.
    """

    def __init__(self, runtime: str, decided: Plan, reads: Path | None = None) -> None:
        words = command(Versus(runtime, reads), decided)
        self._runtime, self._meter = runtime, Meter()
        self.course: tuple[Point, ...] = ()
        self.energy = ""
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            self._read()
        except BaseException as error:
            self.__exit__(type(error))
            raise

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        if kind is not None:  # its turn may take long, and nobody waits for it
            self._process.kill()
        with self._process, suppress(BrokenPipeError):  # closes both pipes, which ends it, and waits
            pass

    def turn(self, number: int, prompt: int = PREFILL_TOKENS, new: int = DECODE_TOKENS) -> dict[str, float]:
        """One prefill of `prompt` tokens and one decode of `new` (more than 1), as rates.

        Raises EngineError where the runtime ends, or its answer after one token.
        """
        first, prefill = self._metered(prompt, 1, 2 * number)
        long, decode = self._metered(SHORT_PROMPT, new, 2 * number + 1)
        if long["tokens"] < 2:
            raise EngineError(
                f"{self._runtime} ended its answer after one token", hint="measure another model"
            )
        self.course = tuple(
            ((since + until) / 2, (after - before) / (until - since))
            for (since, before), (until, after) in pairwise(long["course"])
        )
        taken = {
            "prefill_tps": prompt / first["ttft_s"],
            "decode_tps": (long["tokens"] - 1) / (long["total_s"] - long["ttft_s"]),
            "ttft_s": first["ttft_s"],
            "peak_rss_bytes": long["peak_rss_bytes"],
        }
        if prefill is not None and decode is not None:
            taken |= {"prefill_joules": prefill / prompt, "decode_joules": decode / long["tokens"]}
        return taken

    def _metered(self, prompt: int, new: int, seed: int) -> tuple[Any, float | None]:
        """What an order gives, and the joules it took."""
        self._meter.start()
        try:
            found = self._order(prompt, new, seed)
        finally:
            energy = self._meter.stop()
        self.energy = energy.source or energy.why
        return found, energy.joules

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


def summary(runtime: str, samples: Sequence[dict[str, float]], read_s: float = 0) -> Speed:
    """Medians and extremes of the repetitions; `read_s` is what reading the weights for a token takes at least."""

    def spread(key: str) -> Spread | None:
        return (
            spread_of([sample[key] for sample in samples])
            if all(key in sample for sample in samples)
            else None
        )

    prefill, decode = spread("prefill_tps"), spread("decode_tps")
    assert prefill is not None  # every runtime tells these two
    assert decode is not None
    peak = spread("peak_rss_bytes")
    return Speed(
        runtime,
        prefill,
        decode,
        spread("ttft_s"),
        int(peak.high) if peak else None,
        Spread(read_s * decode.median, read_s * decode.low, read_s * decode.high) if read_s else None,
        spread("prefill_joules"),
        spread("decode_joules"),
    )


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
    lesser = {"ttft": "ttft_s", "peak_rss": "peak_rss_bytes", "joules": "decode_joules"}
    for name, key in lesser.items():
        if all(key in sample for sample in (*ours, *peer)):
            found[name] = paired(key, less_is_better=True)
    return found
