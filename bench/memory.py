"""The plan's memory beside the memory a fresh process really took, cell by cell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from edge.child import python_m
from edge.errors import DoesNotFit, EngineError, RequestError
from edge.planner import plan
from edge.tasks.artifacts import artifact

from .memory_group import group

PROMPT = 2048  # tokens that each conversation prefills at most
CONTEXTS = (512, 2048, 8192)
SETTINGS = ("ref", "ctx", "parallel", "kv", "mmap", "threads")  # of a plan


@dataclass(frozen=True)
class Cell:
    """One model with one setting: predicted and measured peak bytes; error is predicted/measured - 1.

    group_bytes  the peak of a control group of its own, with the file's pages that it read and without those of
                 libraries that others had read; None where no group can be made
    """

    artifact: str
    level: str
    context: int
    parallel: int
    kv: str
    mmap: bool
    predicted_bytes: int
    measured_bytes: int
    group_bytes: int | None

    @property
    def error(self) -> float:
        return self.predicted_bytes / self.measured_bytes - 1


@dataclass(frozen=True)
class Errors:
    """Over all cells: the lowest, median, 95th percentile and highest of predicted/measured - 1."""

    cells: int
    low: float
    median: float
    p95: float
    high: float


def memory(
    refs: Sequence[str],
    contexts: Sequence[int] = CONTEXTS,
    *,
    parallel: Sequence[int] = (1,),
    kv: Sequence[str | None] = (None,),
    mmap: Sequence[bool | None] = (None,),
    threads: int | None = None,
    prompt: int = PROMPT,
    seen: Callable[[Cell], None] = lambda _: None,
) -> tuple[Cell, ...]:
    """Load each model in each setting in a fresh process, prefill up to `prompt` tokens each, answer, and compare. An
    encoder reads batches of texts as long as the context on all its workers.

    A setting that is not possible or does not fit, or a context that a model was not trained for, is left out, which
    a line on stderr says. Raises what `plan` raises for a model, EngineError where a run fails, DoesNotFit where
    nothing was measured and something did not fit.
    """
    cells: list[Cell] = []
    misfit: DoesNotFit | None = None
    for ref in refs:
        usual = plan(ref)
        encodes = artifact(usual.path).task != "generation"
        # an encoder's context is its greatest text, which is often shorter
        lengths = dict.fromkeys(min(one, usual.context) for one in contexts) if encodes else contexts
        for context, slots, kind, mapped in product(lengths, parallel, kv, mmap):
            asked: dict[str, Any] = {
                "ref": ref,
                "ctx": context,
                "parallel": slots,
                "kv": kind,
                "mmap": mapped,
                "threads": threads,
                "encodes": encodes,
            }
            try:
                plan(**{name: asked[name] for name in SETTINGS}).require_fit()
                cell = measured({**asked, "prompt": prompt})
            except (RequestError, DoesNotFit) as error:
                misfit = error if isinstance(error, DoesNotFit) else misfit
                chosen = " ".join(f"{name} {asked[name]}" for name in SETTINGS[1:] if asked[name] is not None)
                print(f"edge: left out: {usual.artifact} {chosen}: {error}", file=sys.stderr, flush=True)
                continue
            seen(cell)
            cells.append(cell)
    if misfit and not cells:
        raise misfit
    return tuple(cells)


def measured(asked: dict[str, Any]) -> Cell:
    """One cell, in a control group of its own where that is possible. Raises EngineError where it fails."""
    command = python_m("edge.bench.memory_child", json.dumps(asked))
    try:
        with group() as own:
            forget(Path(plan(asked["ref"]).path))
            found = ran(own.command(command))
            held: int | None = own.peak()
    except OSError:
        found, held = ran(command), None
    return Cell(
        artifact=found["artifact"],
        level=found["level"],
        context=found["context"],
        parallel=found["parallel"],
        kv=found["kv"],
        mmap=found["mmap"],
        predicted_bytes=found["memory"]["total_bytes"],
        measured_bytes=found["peak_rss_bytes"],
        group_bytes=held,
    )


def ran(command: list[str]) -> dict[str, Any]:
    """What the child found. Raises DoesNotFit where its plan refused, EngineError where it failed."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    words = done.stderr.strip().splitlines()
    last = words[-1] if words else "no output"
    if done.returncode == DoesNotFit.exit_code:
        raise DoesNotFit(last)
    if done.returncode:
        raise EngineError(f"the measured process exited with {done.returncode}: {last}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def forget(path: Path) -> None:
    """Drop a file's pages from the page cache, so that who reads it next is charged for them."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def errors(cells: Sequence[Cell]) -> Errors:
    """How far the predictions were off."""
    found = sorted(cell.error for cell in cells)
    p95 = found[min(len(found) - 1, -(-len(found) * 95 // 100) - 1)]
    return Errors(len(found), found[0], median(found), p95, found[-1])


def by_model(cells: Sequence[Cell]) -> Iterator[tuple[str, Errors]]:
    """The same for each file, as named with its level."""
    for name in dict.fromkeys((cell.artifact, cell.level) for cell in cells):
        yield " ".join(name), errors([cell for cell in cells if (cell.artifact, cell.level) == name])
