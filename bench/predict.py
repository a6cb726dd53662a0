"""The speed that is predicted against the speed that is measured.

    python -m edge.bench.predict REF… [--depths 0,1024] [--threads 1,2] [--rounds 2]

The pace of a machine drifts, so rates and models are measured in turns: for each file the rates of its types, its
cells, and again, as many rounds as asked; the lower quartile of all rounds' times is compared with the mean of what
the rounds' rates predict. A cell is a file × threads × (a prompt of 512, or the next token at a depth). Prints
Markdown; an error is (predicted - measured) / measured tokens a second.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, median

from edge import gguf_header, store
from edge.errors import EdgeError, EngineError
from edge.gguf_header import Header
from edge.machine import host
from edge.measure.kernels import step
from edge.measure.run import Run, running
from edge.measure.samples import interleaved, pace, spread
from edge.measure.whole import Size, whole
from edge.memory import BATCH
from edge.rates import Rates
from edge.speed import matrices, predict

PREFILL = -1  # in place of a depth


@dataclass(frozen=True)
class Cell:
    """Tokens a second, predicted and measured; the spread is that of the measured times."""

    file: str
    threads: int
    depth: int
    predicted: float
    measured: float
    spread: float
    bound: str

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


def cells(path: Path, depths: Sequence[int], threads: Sequence[int], rounds: int) -> list[Cell]:
    """All cells of a file. Raises EngineError where something of it is not predicted."""
    header = gguf_header.read(path)
    kinds = tuple(sorted({tensor.type for tensor, _ in matrices(header)}))
    context = min(max(*depths, BATCH) + BATCH, header.get("{arch}.context_length", int))
    keys = [(count, depth) for depth in (PREFILL, *depths) if depth < context for count in threads]
    rates, times = [], {key: list[float]() for key in keys}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            rates.append(whole(Path(folder), Size(kinds=kinds, seconds=0.3, onnx=False), quiet))
        for key, taken in timed(path, context, keys).items():
            times[key] += taken
    return [cell(path, header, rates, key, taken) for key, taken in times.items()]


def timed(path: Path, context: int, keys: Sequence[tuple[int, int]]) -> dict[tuple[int, int], list[float]]:
    """Seconds of each cell's step."""
    with running(path, context, BATCH) as run:
        found = interleaved(
            {key: partial(step, run, key[0], BATCH) for key in keys if key[1] == PREFILL}, seconds=2
        )
        # The deepest first: what lies before a shallower one is then known
        for depth in sorted({key[1] for key in keys if key[1] != PREFILL}, reverse=True):
            known(run, depth)
            calls: dict[tuple[int, int], Callable[[], float]] = {
                key: partial(step, run, key[0], 1, depth) for key in keys if key[1] == depth
            }
            found |= interleaved(calls, seconds=1, least=20, most=60)
    return found


def known(run: Run, depth: int) -> None:
    """Have so many positions in the cache."""
    run.cut(0)
    for start in range(0, depth, BATCH):
        run.step(min(BATCH, depth - start), start)


def cell(
    path: Path, header: Header, rates: Sequence[Rates], key: tuple[int, int], times: Sequence[float]
) -> Cell:
    threads, depth = key
    found = [
        predict(header, one, prefill_threads=threads, decode_threads=threads, depth=max(0, depth))
        for one in rates
    ]
    speeds = [speed for speed in found if speed is not None]
    if not speeds:
        raise EngineError(f"the speed of {path.name} is not predicted", hint="it has what is not measured")
    if depth == PREFILL:
        predicted, bound, tokens = (
            fmean(speed.prefill_tps for speed in speeds),
            speeds[0].prefill_bound,
            BATCH,
        )
    else:
        predicted, bound, tokens = fmean(speed.decode_tps for speed in speeds), speeds[0].decode_bound, 1
    return Cell(path.name, threads, depth, predicted, tokens / pace(times), spread(times), bound)


def quiet(_: str) -> None:
    """A report to nobody."""


def lines(found: Sequence[Cell]) -> list[str]:
    """The table and its medians, in Markdown."""
    rows = [
        "| file | threads | tokens | predicted t/s | measured t/s | error | spread | bound |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for one in found:
        what = f"prompt of {BATCH}" if one.depth == PREFILL else f"next at {one.depth}"
        speeds = f"{one.predicted:,.1f} | {one.measured:,.1f} | {one.error:+.1%} | {one.spread:.0%}"
        rows.append(f"| {one.file} | {one.threads} | {what} | {speeds} | {one.bound} |")
    groups = {
        "all": found,
        "prefill": [one for one in found if one.depth == PREFILL],
        "decode": [one for one in found if one.depth != PREFILL],
    }
    rows.append("")
    for name, some in groups.items():
        if some:
            errors = sorted(abs(one.error) for one in some)
            rows.append(
                f"{name}: {len(some)} cells, median absolute error {median(errors):.1%}, largest {errors[-1]:.1%}"
            )
    return rows


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m edge.bench.predict", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("refs", nargs="+", metavar="REF")
    parser.add_argument("--depths", type=numbers, default=[0, 1024])
    parser.add_argument("--threads", type=numbers, default=sorted({1, host().cpu.cores}))
    parser.add_argument("--rounds", type=int, default=2)
    asked = parser.parse_args()
    found: list[Cell] = []
    try:
        for ref in asked.refs:
            path = store.resolve(ref).path
            print(path.name, file=sys.stderr)
            found += cells(path, asked.depths, asked.threads, asked.rounds)
    except EdgeError as error:
        parser.exit(error.exit_code, f"{error.line}\n")
    print("\n".join(lines(found)))


if __name__ == "__main__":
    main()
