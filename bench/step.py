"""What a decode step spends its time on: in llama.cpp's decode, in its samplers, and in Python.

    python -m edge.bench.step REF [--sequences 1,8] [--tokens 64] [--repetitions 5]

Requests are greedy and begin together; counted are the steps that decode a token of every answer and no prompt.
Python's part is all that is neither llama_decode nor llama_sampler_sample, so the wait for the interpreter after these,
while whoever reads the answers has it, is in llama.cpp's part of the wall time: the answers are once left unread until
their end ("nobody") and once read by an asyncio loop, and what reading costs shows in the whole. Processor time is the
decode thread's own, which says more than the wall on a busy machine. Prints Markdown, medians over steps.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter, sleep, thread_time
from typing import Any

from edge.chat.loaded import LoadedModel, load
from edge.engine import Sampling
from edge.engine.binding import llama
from edge.engine.request import Stream
from edge.errors import EdgeError, EngineError

from .serve import ROOM, numbers
from .serve_load import prompts

PROMPT_ROWS = 24  # a batch of more rows has a piece of prompt in it
READERS = ("nobody", "asyncio")


@dataclass
class Times:
    """Seconds of a step, on the wall and of the decode thread's processor time: all, in llama_decode, in samplers."""

    whole: list[float]
    decode: list[float] = field(default_factory=lambda: [0.0, 0.0])
    draw: list[float] = field(default_factory=lambda: [0.0, 0.0])
    rows: int = 0


@dataclass(frozen=True)
class Share:
    """Medians over the steps: milliseconds on the wall, and Python's share of the wall and of processor time."""

    sequences: int
    reader: str
    steps: int
    whole_ms: float
    decode_ms: float
    draw_ms: float
    python_ms: float
    python_wall: float
    python_cpu: float


@contextmanager
def measured(model: LoadedModel) -> Iterator[list[Times]]:
    """The times of every step meanwhile. Nothing may be decoded as it begins or ends."""
    lib, scheduler = llama(), model.engine._decoder._scheduler
    steps: list[Times] = []
    running = Times([0.0, 0.0])
    ended = [0.0, 0.0]
    step, decode, sample = scheduler.step, lib.llama_decode, lib.llama_sampler_sample

    def timed(call: Callable[..., Any], into: list[float], *given: Any) -> Any:
        wall, cpu = perf_counter(), thread_time()
        result = call(*given)
        into[0] += perf_counter() - wall
        into[1] += thread_time() - cpu
        return result

    def timed_decode(context: Any, batch: Any) -> Any:
        running.rows = max(running.rows, batch.n_tokens)
        return timed(decode, running.decode, context, batch)

    def timed_step(*, admit: bool = True) -> None:
        nonlocal running, ended
        running = Times([0.0, 0.0])
        step(admit=admit)
        now = [perf_counter(), thread_time()]
        running.whole = [after - before for after, before in zip(now, ended, strict=True)]
        ended = now
        steps.append(running)

    scheduler.step = timed_step  # type: ignore[method-assign]
    lib.llama_decode = timed_decode
    lib.llama_sampler_sample = lambda *given: timed(sample, running.draw, *given)
    try:
        yield steps
    finally:
        lib.llama_decode, lib.llama_sampler_sample = decode, sample
        del scheduler.step


def steps(
    ref: str, sequences: int, *, tokens: int, threads: int | None, repetitions: int
) -> tuple[Share, ...]:
    """A share for each way to read. Raises what loading raises, and EngineError where no step could be counted."""
    seen: dict[str, list[Times]] = {reader: [] for reader in READERS}
    with load(ref, ctx=ROOM + tokens, threads=threads, parallel=sequences, lookup=False) as model:
        for turn in range(repetitions + 1):
            for at, reader in enumerate(READERS):
                with measured(model) as found:
                    answer(model, prompts(sequences, 100 * turn + at), tokens, reader)
                if turn:
                    # The first steps have prompts in them, and in the last some answers have ended
                    whole = [one for one in found[1:] if 0 < one.rows <= PROMPT_ROWS]
                    seen[reader] += whole[: max(0, tokens - sequences)]
    return tuple(share(sequences, reader, times) for reader, times in seen.items())


def answer(model: LoadedModel, texts: Sequence[str], tokens: int, reader: str) -> None:
    """Have all texts continued, read by whom it says."""
    sampling = Sampling(temperature=0, max_tokens=tokens, ignore_eos=True)

    async def read(stream: Stream) -> None:
        async for _ in stream:
            pass

    async def read_all() -> None:
        await asyncio.gather(*(read(model.generate(text, sampling)) for text in texts))

    if reader == "asyncio":
        asyncio.run(read_all())
    else:
        for stream in [model.generate(text, sampling) for text in texts]:
            while not stream.done:  # waiting for its condition would be a reader that is woken by every token
                sleep(0.02)


def share(sequences: int, reader: str, times: Sequence[Times]) -> Share:
    """Medians. Raises EngineError where there are no times."""
    if not times:
        raise EngineError("the answers ended too early to be timed", hint="ask for more --tokens")

    def rest(one: Times, clock: int) -> float:
        return one.whole[clock] - one.decode[clock] - one.draw[clock]

    return Share(
        sequences,
        reader,
        len(times),
        1000 * median(one.whole[0] for one in times),
        1000 * median(one.decode[0] for one in times),
        1000 * median(one.draw[0] for one in times),
        1000 * median(rest(one, 0) for one in times),
        median(rest(one, 0) / one.whole[0] for one in times),
        median(rest(one, 1) / one.whole[1] for one in times),
    )


def lines(shares: Sequence[Share]) -> list[str]:
    """The table, in Markdown."""
    found = [
        "| sequences | read by | steps | step ms | llama_decode | samplers | Python | Python, wall | Python, CPU |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in shares:
        parts = f"{one.whole_ms:.2f} | {one.decode_ms:.2f} | {one.draw_ms:.3f} | {one.python_ms:.3f}"
        found.append(
            f"| {one.sequences} | {one.reader} | {one.steps} | {parts} | {one.python_wall:.1%} | {one.python_cpu:.1%} |"
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m edge.bench.step", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("ref")
    parser.add_argument("--sequences", type=numbers, default=[1, 8])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repetitions", type=int, default=5)
    asked = parser.parse_args()
    try:
        shares = [
            share
            for count in asked.sequences
            for share in steps(
                asked.ref, count, tokens=asked.tokens, threads=asked.threads, repetitions=asked.repetitions
            )
        ]
    except EdgeError as error:
        parser.exit(error.exit_code, f"{error.line}\n")
    print("\n".join(lines(shares)))


if __name__ == "__main__":
    main()
