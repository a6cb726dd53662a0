"""A control group for one process: its peak of memory, and a limit beyond which the kernel kills it.

Version 1 and 2 (the kernel's admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst). The group is made inside our own, so
that whatever limits us limits it too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from edge.machine.cgroup import memory_folder
from edge.machine.system import here

NAMES = {
    "limit": ("memory.max", "memory.limit_in_bytes"),
    "swap": ("memory.swap.max", "memory.memsw.limit_in_bytes"),
    "peak": ("memory.peak", "memory.max_usage_in_bytes"),
    "events": ("memory.events", "memory.oom_control"),
}


@dataclass(frozen=True)
class Group:
    """A group's folder."""

    folder: Path

    def command(self, words: list[str]) -> list[str]:
        """The command that joins the group and becomes `words`."""
        join = 'echo $$ > "$1" && shift && exec "$@"'
        return ["/bin/sh", "-c", join, "sh", str(self.folder / "cgroup.procs"), *words]

    def limit(self, count: int) -> None:
        """Kill what takes more than so many bytes, swap or none. Raises OSError."""
        self.file("limit").write_text(str(count))
        with suppress(OSError):  # a kernel without swap accounting has no swap to limit
            swap = self.file("swap")
            swap.write_text("0" if swap.name == "memory.swap.max" else str(count))

    def peak(self) -> int:
        """The most bytes the group has held, page cache that it was first to read with it. Raises OSError."""
        return int(self.file("peak").read_text())

    def killed(self) -> int:
        """How many processes the kernel killed for want of memory. Raises OSError."""
        fields = (line.split() for line in self.file("events").read_text().splitlines())
        return sum(int(value) for name, value in fields if name == "oom_kill")

    def file(self, what: str) -> Path:
        """The first of the version's names that there is. Raises FileNotFoundError."""
        for name in NAMES[what]:
            if (self.folder / name).exists():
                return self.folder / name
        raise FileNotFoundError(f"{self.folder} has no {NAMES[what][0]}")


@contextmanager
def group() -> Iterator[Group]:
    """A new group. Raises OSError where this process may not make one."""
    own = memory_folder(here())
    if own is None:
        raise FileNotFoundError("no control group limits memory here")
    folder = Path(own) / f"edge-bench-{os.getpid()}-{time.monotonic_ns()}"
    folder.mkdir()
    try:
        made = Group(folder)
        made.peak()  # version 2 gives these files only where the parent hands the controller down
        yield made
    finally:
        remove(folder)


def remove(folder: Path) -> None:
    """Remove the group; the kernel takes a moment to forget what ran in it."""
    for _ in range(50):
        try:
            folder.rmdir()
            return
        except OSError:
            time.sleep(0.02)
