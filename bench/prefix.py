"""Time to first token of a prompt whose beginning was seen before: cold, from memory, and in a new process from disk.

    python -m edge.bench.prefix smollm2-135m-instruct --tokens 2000 --repetitions 5

A repetition takes two processes. The first answers a prompt of so many random tokens and a short question (cold), then
the same with another question (memory), and closes, which keeps the state. The second loads the model and asks a third
question (disk). Each has decoded something before, so that no page of the model is read for the first time. Loading the
model is no part of a time to first token.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from edge.child import python_m
from edge.engine import Engine, Sampling
from edge.engine.disk import DiskCache, listing
from edge.engine.state_key import state_key
from edge.errors import EngineError
from edge.planner import plan

from .peer_work import random_prompt
from .speed import Spread, spread_of

QUESTION, WARM = 16, 64  # tokens
BUDGET = 1 << 40


@dataclass(frozen=True)
class Report:
    """Seconds to the first token, and cold over the other two, repetition by repetition.

    state_bytes  of the file that the disk's answer began from
    reused       tokens of the prefix that were not computed again, the least of all repetitions: memory, disk
    keep_s       to close the engine, most of it to write the state
    """

    tokens: int
    cold_s: Spread
    memory_s: Spread
    disk_s: Spread
    from_memory: Spread
    from_disk: Spread
    state_bytes: int
    reused: tuple[int, int]
    keep_s: Spread


def prefix(ref: str, *, tokens: int = 2000, threads: int | None = None, repetitions: int = 5) -> Report:
    """Measure `ref`. Raises what `plan` raises, DoesNotFit, and EngineError where a process ends early."""
    decided = plan(ref, ctx=tokens + 2 * QUESTION, threads=threads).require_fit()
    seen: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for turn in range(repetitions):
        with tempfile.TemporaryDirectory() as folder:
            words = [str(decided.path), folder, str(tokens), str(decided.threads.decode), str(turn)]
            first, second = (child(role, words) for role in ("first", "second"))
            kept, _ = listing(Path(folder))
            seen.append((first, {**second, "bytes": max(entry.bytes for entry in kept)}))
    cold = [first["cold"]["s"] for first, _ in seen]
    memory = [first["memory"]["s"] for first, _ in seen]
    disk = [second["disk"]["s"] for _, second in seen]
    return Report(
        tokens,
        spread_of(cold),
        spread_of(memory),
        spread_of(disk),
        spread_of([slow / fast for slow, fast in zip(cold, memory, strict=True)]),
        spread_of([slow / fast for slow, fast in zip(cold, disk, strict=True)]),
        max(second["bytes"] for _, second in seen),
        (
            min(first["memory"]["reused"] for first, _ in seen),
            min(second["disk"]["reused"] for _, second in seen),
        ),
        spread_of([first["keep_s"] for first, _ in seen]),
    )


def child(role: str, words: list[str]) -> Any:
    """What a process of that role measured. Raises EngineError where it fails."""
    command = python_m("edge.bench.prefix", role, "--work", *words)
    done = subprocess.run(command, stdout=subprocess.PIPE)
    if done.returncode:
        raise EngineError("a process ended before its work was done", hint="its last words are above")
    return json.loads(done.stdout)


def work(role: str, path: str, folder: str, tokens: int, threads: int, turn: int) -> dict[str, Any]:
    """What a child does: answers questions after the prefix, and says how long the first token took."""
    decided = plan(path, ctx=tokens + 2 * QUESTION, threads=threads)
    disk = DiskCache(Path(folder), state_key(decided), budget=BUDGET)
    engine = Engine(decided, disk=disk)

    def ask(prompt: list[int]) -> dict[str, Any]:
        started = perf_counter()
        chunk = next(iter(engine.submit(prompt, Sampling(temperature=0, max_tokens=1))))
        return {"s": perf_counter() - started, "reused": chunk.reused_tokens}

    size = engine.vocab.size
    seen = random_prompt(size, tokens, 1000 * turn)
    questions = [random_prompt(size, QUESTION, 1000 * turn + number) for number in range(1, 4)]
    ask(random_prompt(size, WARM, 1000 * turn + 4 + (role == "second")))
    found: dict[str, Any] = {}
    if role == "first":
        found["cold"] = ask(seen + questions[0])
        found["memory"] = ask(seen + questions[1])
    else:
        found["disk"] = ask(seen + questions[2])
    started = perf_counter()
    engine.close()
    return {**found, "keep_s": perf_counter() - started}


def lines(report: Report) -> str:
    """The report for people."""
    rows = [f"{report.tokens:,} tokens seen before and {QUESTION} new ones: time to first token"]
    for name, taken, times in (
        ("cold", report.cold_s, None),
        ("memory", report.memory_s, report.from_memory),
        ("disk", report.disk_s, report.from_disk),
    ):
        row = f"{name:<7}{1000 * taken.median:10,.1f} ms  {1000 * taken.low:,.1f}–{1000 * taken.high:,.1f}"
        more = f"  {times.median:.1f} times shorter, {times.low:.1f}–{times.high:.1f}" if times else ""
        rows.append(row + more)
    rows.append(
        f"reused {report.reused[0]:,} tokens from memory, {report.reused[1]:,} from disk; the state is "
        f"{report.state_bytes / 1e6:.1f} MB, kept in {1000 * report.keep_s.median:.0f} ms"
    )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m edge.bench.prefix", description=__doc__)
    parser.add_argument("ref")
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--work", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        path, folder, tokens, threads, turn = given.work
        json.dump(work(given.ref, path, folder, int(tokens), int(threads), int(turn)), sys.stdout)
        return
    report = prefix(given.ref, tokens=given.tokens, threads=given.threads, repetitions=given.repetitions)
    print(json.dumps(dataclasses.asdict(report), indent=2) if given.json else lines(report))


if __name__ == "__main__":
    main()
