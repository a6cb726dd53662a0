"""Who used the CPUs: this process, others, or the other guests of a hypervisor.

Source: proc_stat(5), proc_pid_stat(5), the kernel's Documentation/accounting/psi.rst. All counts are ticks of USER_HZ.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from edge.machine.system import System

LEAST_TICKS = 20  # a fifth of a second of one CPU; of fewer a share says little


@dataclass(frozen=True)
class Ticks:
    """Time of this process's CPUs since the start: `busy` includes `own` (its ended children's too)."""

    total: int
    busy: int
    steal: int
    own: int


def ticks(system: System) -> Ticks | None:
    """The counts now, or None where /proc does not tell."""
    total = busy = steal = 0
    for line in system.text("/proc/stat").splitlines():
        found = re.fullmatch(r"cpu(\d{1,6}) ((?:\d{1,19} ){4,}\d{1,19})", line.strip(), re.A)
        if found and int(found[1]) in system.cpus:
            user, nice, kernel, idle, wait, *more = (int(word) for word in found[2].split())
            interrupts, stolen = sum(more[:2]), sum(more[2:3])  # guests' time is in user and nice already
            used = user + nice + kernel + interrupts
            total, busy, steal = total + used + idle + wait + stolen, busy + used, steal + stolen
    # the command's name may hold blanks and brackets
    fields = system.text("/proc/self/stat").rpartition(")")[2].split()[11:15]
    if not total or len(fields) < 4 or not all(re.fullmatch(r"\d{1,19}", field, re.A) for field in fields):
        return None
    return Ticks(total, busy, steal, sum(int(field) for field in fields))


def shares(before: Ticks | None, after: Ticks | None) -> tuple[float, float] | None:
    """The shares of the CPUs that other processes used between, and that other guests did; None: not known."""
    if before is None or after is None:
        return None
    total = after.total - before.total
    if total < LEAST_TICKS:
        return None
    others = (after.busy - before.busy) - (after.own - before.own)
    return share(others, total), share(after.steal - before.steal, total)


def share(part: int, total: int) -> float:
    """Within 0 and 1: the kernel counts a process's own time finer than that of its CPU."""
    return min(1.0, max(0.0, part / total))


def waited_us(system: System) -> int | None:
    """Microseconds since the start in which a task waited for a CPU (pressure stall information)."""
    found = re.search(r"^some .*\btotal=(\d{1,19})$", system.text("/proc/pressure/cpu"), re.M | re.A)
    return int(found[1]) if found else None


def load(system: System) -> float | None:
    """The load of the last minute: tasks that ran or waited to."""
    found = re.match(r"(\d{1,9}\.\d+) ", system.text("/proc/loadavg"), re.A)
    return float(found[1]) if found else None
