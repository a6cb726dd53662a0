"""How much memory a model may take here: the machine's, cut to what limits this process.

    available = min( MemAvailable + held,
                     limit − usage + inactive file cache + held    for every control group up the tree,
                     limit − used                                  for RLIMIT_AS and RLIMIT_DATA )

What this process holds already is part of what a model takes in it: `held` is its own memory, as far as an interpreter
without a model has that much.

The inactive file cache is counted as free because the kernel drops it before it kills; the active file cache
is not, as dropping it costs reads. MemAvailable makes the same kind of estimate for the whole machine.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from edge.machine.cgroup import memory_groups
from edge.machine.system import System

# What each resource limit is measured against in /proc/self/status (setrlimit(2), proc_pid_status(5)).
INTERPRETER_BYTES = 22 << 20  # measured: Python with the command, before a model is loaded
USED = {"AS": "VmSize", "DATA": "VmData"}


@dataclass(frozen=True)
class Memory:
    """Bytes. `limit_bytes` is the smallest limit on this process, None when only the machine limits it."""

    total_bytes: int
    available_bytes: int
    limit_bytes: int | None


def memory(system: System) -> Memory:
    """Total, available and limit; without /proc/meminfo the C library or psutil is asked instead."""
    info = kilobytes(system.text("/proc/meminfo"))
    if "MemTotal" in info and "MemAvailable" in info:
        total, available = info["MemTotal"], info["MemAvailable"]
    else:
        total, available = system.memory()

    status = kilobytes(system.text("/proc/self/status"))
    held = min(status.get("RssAnon", 0), INTERPRETER_BYTES)
    groups = memory_groups(system)
    limits = [group.limit for group in groups]
    rooms = [available, *(group.limit - group.usage + group.reclaimable for group in groups)]
    rooms = [room + held for room in rooms]
    for name, limit in system.rlimits.items():
        if limit is not None:
            limits.append(limit)
            rooms.append(limit - status.get(USED[name], 0))

    return Memory(total, max(0, min(rooms)), min(limits, default=None))


def kilobytes(text: str) -> dict[str, int]:
    """Lines of `Name:  123 kB` as bytes."""
    lines = re.findall(r"^(\w+):\s+(\d{1,18}) kB$", text, re.MULTILINE | re.ASCII)
    return {name: int(count) * 1024 for name, count in lines}
