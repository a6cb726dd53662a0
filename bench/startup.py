"""What a user waits for: whole processes, timed from outside, beside llama.cpp's own llama-completion."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from edge.child import python_m
from edge.errors import EngineError
from edge.planner import plan

from .llama_bench import program
from .speed import Spread, spread_of


@dataclass(frozen=True)
class Process:
    """Wall seconds and peak resident bytes of one command."""

    name: str
    wall_s: Spread
    peak_rss_bytes: int


def startup(ref: str, *, peer: bool = False, repetitions: int = 7) -> tuple[Process, ...]:
    """Time `import edge`, `edge --help` and one answered token; with `peer`, llama-completion doing the same.

    The commands take turns; the first round only warms the caches. Raises EngineError where one fails.
    """
    decided = plan(ref)
    edge = python_m("edge")
    commands = {
        "python (empty)": [sys.executable, "-c", "pass"],
        "import edge": [
            sys.executable,
            "-c",
            "import sys; sys.path[:] = filter(None, sys.path); import edge",
        ],
        "edge --help": [*edge, "--help"],
        "edge chat": [*edge, "chat", ref, "--max-tokens", "1", "--", "Hi"],
    }
    if peer:
        commands["llama-completion"] = [
            str(program("llama-completion")), "-m", str(decided.path), "-t", str(decided.threads.decode),
            "-n", "1", "--single-turn", "-p", "Hi",
        ]  # fmt: skip
    walls: dict[str, list[float]] = {name: [] for name in commands}
    peaks = dict.fromkeys(commands, 0)
    for turn in range(repetitions + 1):
        for name, command in commands.items():
            wall, peak = timed(command)
            if turn:
                walls[name].append(wall)
                peaks[name] = max(peaks[name], peak)
    return tuple(Process(name, spread_of(walls[name]), peaks[name]) for name in commands)


def timed(command: list[str]) -> tuple[float, int]:
    """Wall seconds and peak resident bytes of one run. Raises EngineError with its last words if it fails."""
    done = subprocess.run(python_m("edge.bench.watch", *command), stdout=subprocess.PIPE)
    if done.returncode:
        raise EngineError(f"{Path(command[0]).name} could not be watched", hint="its last words are above")
    seen = json.loads(done.stdout)
    if seen["exit_code"]:
        raise EngineError(f"{Path(command[0]).name} exited with {seen['exit_code']}: {seen['last_words']}")
    return seen["wall_s"], seen["peak_rss_bytes"]
