"""Limits of the control groups this process is in, version 1, version 2 or both at once.

A limit of any group up the tree binds the process, so every group from its own to the root is read. Sources:
the kernel's admin-guide/cgroup-v1/memory.rst, admin-guide/cgroup-v2.rst and scheduler/sched-bwc.rst.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from edge.machine.system import System, number

# Version 1 writes "unlimited" as 2^63-1 rounded down to a page (9223372036854771712 for pages of 4 KiB, less
# for 64 KiB): anything this large means no limit.
UNLIMITED = 1 << 62


@dataclass(frozen=True)
class MemoryGroup:
    """One limited group, in bytes: its limit, what it holds, and how much of that is file cache to drop."""

    limit: int
    usage: int
    reclaimable: int


def memory_groups(system: System) -> list[MemoryGroup]:
    """Every group of this process that limits memory, its own first."""
    groups = []
    for folder in _folders(system, "memory"):
        stat = _fields(system.text(folder / "memory.stat"))
        limits = [
            system.number(folder / "memory.max"),
            # above `high` the kernel stalls the process instead of killing it: no place for weights either
            system.number(folder / "memory.high"),
            system.number(folder / "memory.limit_in_bytes"),
            # the smallest limit of the parents too, which a container cannot see otherwise
            stat.get("hierarchical_memory_limit"),
        ]
        known = [limit for limit in limits if limit is not None and 0 <= limit < UNLIMITED]
        if known:
            v2, v1 = system.number(folder / "memory.current"), system.number(folder / "memory.usage_in_bytes")
            reclaimable = stat.get("total_inactive_file", stat.get("inactive_file", 0))
            groups.append(MemoryGroup(min(known), v2 or v1 or 0, reclaimable))
    return groups


def memory_folder(system: System) -> PurePosixPath | None:
    """The folder of this process's own group; None where no hierarchy controls memory."""
    return next(_folders(system, "memory"), None)


def cpu_quota(system: System) -> float | None:
    """CPUs' worth of time this process may use (1.5 is one and a half), None when unlimited."""
    quotas = []
    for folder in _folders(system, "cpu"):
        v2 = [number(word) for word in system.text(folder / "cpu.max").split()]
        v1 = [system.number(folder / "cpu.cfs_quota_us"), system.number(folder / "cpu.cfs_period_us")]
        for quota, period in (pair for pair in (v2, v1) if len(pair) == 2):
            if quota is not None and period is not None and quota > 0 and period > 0:
                quotas.append(quota / period)
    return min(quotas, default=None)


def _folders(system: System, controller: str) -> Iterator[PurePosixPath]:
    """Folders of this process's groups that may hold the controller's files, from its own up to the mount."""
    paths = _own_paths(system.text("/proc/self/cgroup"))
    for mount, mounted, names in _mounts(system.text("/proc/self/mountinfo")):
        name = controller if controller in names else ""
        if not (name or "cgroup2" in names) or name not in paths:
            continue
        own = paths[name]
        # A container often sees its own group as the mount, under a path that only the outside knows.
        inside = own.relative_to(mounted) if own.is_relative_to(mounted) else PurePosixPath()
        if ".." in inside.parts:
            inside = PurePosixPath()
        own_folder = mount / inside
        # Folders that are not visible here have no files and so drop out when they are read.
        for folder in (own_folder, *own_folder.parents):
            yield folder
            if folder == mount:
                break


def _own_paths(text: str) -> dict[str, PurePosixPath]:
    """/proc/self/cgroup as controller → group; version 2 has the name ""."""
    paths = {}
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        controllers, found, path = rest.partition(":")
        if found and path.startswith("/"):
            paths.update({name: PurePosixPath(path) for name in controllers.split(",")})
    return paths


def _mounts(text: str) -> Iterator[tuple[PurePosixPath, PurePosixPath, list[str]]]:
    """Each cgroup mount of /proc/self/mountinfo: where, which group is mounted there, its controllers."""
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if len(fields) >= 5 and kind and kind[0] in ("cgroup", "cgroup2"):
            names = ["cgroup2"] if kind[0] == "cgroup2" else kind[-1].split(",")
            yield PurePosixPath(fields[4]), PurePosixPath(fields[3]), names


def _fields(text: str) -> dict[str, int]:
    """Lines of `name number`."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: value for pair in pairs if len(pair) == 2 and (value := number(pair[1])) is not None}
