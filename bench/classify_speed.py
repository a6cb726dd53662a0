"""Texts a second of an encoder's forms and of its peers, in processes that take turns."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.child import python_m
from edge.errors import EngineError, RequestError
from edge.machine import host

from . import classify_work
from .speed import Spread, spread_of


@dataclass(frozen=True)
class Pace:
    """One runtime: texts a second of wall time and of processor time (less sensitive to a busy machine)."""

    title: str
    by_wall: Spread
    by_cores: Spread


@dataclass(frozen=True)
class Paces:
    """All runtimes, and the first over each of the others turn by turn (above 1: the first is faster).

    `reason` is why the first, opened by a name with several forms, runs as it does.
    """

    texts: int
    threads: int
    paces: tuple[Pace, ...]
    by_wall: tuple[Spread, ...]
    by_cores: tuple[Spread, ...]
    reason: str = ""


def speed(
    refs: Sequence[str],
    texts: Sequence[str],
    *,
    checkpoint: Path | None = None,
    plain: Path | None = None,
    threads: int | None = None,
    repetitions: int = 5,
) -> Paces:
    """Time `refs` (each with @onnx or @gguf at will) on the texts, and beside them their peers.

    checkpoint  run by torch, where $EDGE_TORCH_PYTHON names an interpreter that has torch and transformers; its
                tokenizer reads for `plain`
    plain       an ONNX file of somebody else's, run without care

    Raises EngineError where a runtime fails, RequestError for `plain` without a checkpoint.
    """
    cores = threads or host().cpu.performance_cores
    python = os.environ.get("EDGE_TORCH_PYTHON")
    if plain and not checkpoint:
        raise RequestError("a plain ONNX file needs a tokenizer", hint="name the checkpoint it was made from")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        file = Path(folder, "texts.json")
        file.write_text(json.dumps(list(texts)), encoding="utf-8")
        end = [str(cores), str(file)]
        commands = [python_m("edge.bench.classify_work", "edge", ref, *end) for ref in refs]
        if plain:
            words = [str(plain), str(checkpoint and checkpoint / "tokenizer.json")]
            commands.append(python_m("edge.bench.classify_work", "onnxruntime", *words, *end))
        if checkpoint and python:
            script = classify_work.__file__
            commands += [[python, script, name, str(checkpoint), *end] for name in ("torch", "torch-sorted")]
        workers = [stack.enter_context(Worker(command)) for command in commands]
        taken: list[list[dict[str, float]]] = [[] for _ in workers]
        for turn in range(repetitions + 1):
            for worker, samples in zip(workers, taken, strict=True):
                sample = worker.turn()
                if turn:  # the first turn warms caches and allocators
                    samples.append(sample)
        titles = [worker.told["title"] for worker in workers]
        reason = workers[0].told.get("reason", "")
    return summary(titles, taken, len(texts), cores, reason)


def summary(
    titles: Sequence[str],
    taken: Sequence[Sequence[dict[str, float]]],
    texts: int,
    threads: int,
    reason: str = "",
) -> Paces:
    """Medians and extremes; ratios are of the same turn."""

    def paced(samples: Sequence[dict[str, float]], key: str) -> Spread:
        return spread_of([texts / sample[key] for sample in samples])

    def over(samples: Sequence[dict[str, float]], key: str) -> Spread:
        return spread_of([other[key] / own[key] for own, other in zip(taken[0], samples, strict=True)])

    return Paces(
        texts,
        threads,
        tuple(
            Pace(title, paced(samples, "wall_s"), paced(samples, "cores_s"))
            for title, samples in zip(titles, taken, strict=True)
        ),
        tuple(over(samples, "wall_s") for samples in taken),
        tuple(over(samples, "cores_s") for samples in taken),
        reason,
    )


def lines(found: Paces) -> list[str]:
    """The figures as a Markdown table."""
    first = found.paces[0].title
    rows = [
        f"{found.texts:,} texts, {found.threads} threads" + (f"; {found.reason}" if found.reason else ""),
        "",
        f"| runtime | texts/s | {first} is faster by | texts a core-second | {first} is faster by |",
        "|---|---|---|---|---|",
    ]
    for pace, wall, cores in zip(found.paces, found.by_wall, found.by_cores, strict=True):
        rows.append(
            f"| {pace.title} | {whole(pace.by_wall)} | {ratio(wall)} | {whole(pace.by_cores)} | {ratio(cores)} |"
        )
    return rows


def whole(spread: Spread) -> str:
    return f"{spread.median:,.0f} ({spread.low:,.0f}–{spread.high:,.0f})"


def ratio(spread: Spread) -> str:
    return f"{spread.median:.2f} ({spread.low:.2f}–{spread.high:.2f})"


class Worker:
    """A process of `classify_work` with the model loaded; a context manager. `told` is what it says of itself."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            self.told: dict[str, Any] = self._read()
        except EngineError:
            self.__exit__()
            raise

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process, suppress(BrokenPipeError):  # closes both pipes, which ends it, and waits
            pass

    def turn(self) -> dict[str, float]:
        """One pass over the texts, in seconds. Raises EngineError where the process ends."""
        assert self._process.stdin
        with suppress(BrokenPipeError):  # it is gone; reading says so
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        found: dict[str, float] = self._read()
        return found

    def _read(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise EngineError("a runtime ended before its work was done", hint="its last words are above")
        return json.loads(line)
