"""The speed that is predicted against the speed that is measured.

    python -m edge.bench.predict REF… [--depths 0,1024] [--threads 1,2] [--seconds 15]

The pace of a machine drifts, so in each round the parts that the rates are made of and the file's cells are timed one
after the other, and the lower quartile of the rounds is taken of both. A cell is a file × threads × (a prompt of 512,
or the next token at a depth). Prints Markdown; an error is (predicted - measured) / measured tokens a second.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from edge import gguf_header, store
from edge.errors import EdgeError, EngineError
from edge.gguf_header import Header
from edge.machine import host
from edge.measure.bandwidth import bandwidth
from edge.measure.kernels import Session, step
from edge.measure.run import Run, loaded
from edge.measure.samples import interleaved, pace, spread
from edge.memory import BATCH
from edge.rates import Rates, Scaling, key_of
from edge.speed import matrices, predict

PREFILL = -1  # in place of a depth
THIS = "this"  # what the file's own cells are called


@dataclass(frozen=True)
class Cell:
    """Tokens a second, predicted and measured; the spread is that of the measured times."""

    file: str
    threads: int
    depth: int
    predicted: float
    measured: float
    spread: float | None
    bound: str

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


def cells(path: Path, depths: Sequence[int], threads: Sequence[int], seconds: float) -> list[Cell]:
    """All cells of a file. Raises EngineError where something of it is not predicted."""
    header = gguf_header.read(path)
    kinds = tuple(sorted({tensor.type for tensor, _ in matrices(header)}))
    longest = header.get("{arch}.context_length", int)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        session = Session(folder, kinds, threads)
        stack.callback(session.close)
        calls: dict[tuple[str, int, int], Callable[[], Any]] = dict(session.calls)
        model = stack.enter_context(loaded(path))
        for depth in (PREFILL, *depths):
            if depth + 1 > longest:
                continue
            run = Run(model, max(depth + 1, BATCH), BATCH, None)
            stack.callback(run.close)
            known(run, depth)
            for count in threads:
                rows = BATCH if depth == PREFILL else 1
                calls[THIS, count, depth] = partial(step, run, count, rows, max(0, depth))
        timed = interleaved(calls, seconds=seconds, least=2, most=40, warm=False)
    kernels, layers, attention, start = session.derived(timed)
    machine = host()
    rates = Rates(
        key=key_of(machine),
        bandwidth=bandwidth(threads, machine.memory.available_bytes, seconds=1),
        kernels=kernels,
        layers=layers,
        attention=attention,
        scaling=tuple(Scaling(count, 1.0, 1.0) for count in threads),  # not asked: each count is measured
        prefill_threads=max(threads),
        decode_threads=max(threads),
        step_seconds=start,
        noise=0.0,
        measured_at=0.0,
        seconds=seconds,
    )
    return [cell(path, header, rates, key[1:], taken) for key, taken in timed.items() if key[0] == THIS]


def known(run: Run, depth: int) -> None:
    """Have so many positions in the cache."""
    for start in range(0, depth, BATCH):
        run.step(min(BATCH, depth - start), start)


def cell(path: Path, header: Header, rates: Rates, key: tuple[int, int], times: Sequence[float]) -> Cell:
    threads, depth = key
    found = predict(header, rates, prefill_threads=threads, decode_threads=threads, depth=max(0, depth))
    if found is None:
        raise EngineError(f"the speed of {path.name} is not predicted", hint="it has what is not measured")
    if depth == PREFILL:
        predicted, bound, tokens = found.prefill_tps, found.prefill_bound, BATCH
    else:
        assert found.decode_tps is not None
        predicted, bound, tokens = found.decode_tps, found.decode_bound, 1
    return Cell(path.name, threads, depth, predicted, tokens / pace(times), spread(times), bound)


def lines(found: Sequence[Cell]) -> list[str]:
    """The table and its medians, in Markdown."""
    rows = [
        "| file | threads | tokens | predicted t/s | measured t/s | error | spread | bound |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for one in found:
        what = f"prompt of {BATCH}" if one.depth == PREFILL else f"next at {one.depth}"
        disturbed = "–" if one.spread is None else f"{one.spread:.0%}"
        speeds = f"{one.predicted:,.1f} | {one.measured:,.1f} | {one.error:+.1%} | {disturbed}"
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
    parser.add_argument("--seconds", type=float, default=15, help="for a file")
    asked = parser.parse_args()
    found: list[Cell] = []
    try:
        for ref in asked.refs:
            path = store.resolve(ref).path
            of_file = cells(path, asked.depths, asked.threads, asked.seconds)
            print(*lines(of_file)[2:-4], sep="\n", file=sys.stderr, flush=True)  # as they come, in a long run
            found += of_file
    except EdgeError as error:
        parser.exit(error.exit_code, f"{error.line}\n")
    print("\n".join(lines(found)))


if __name__ == "__main__":
    main()
