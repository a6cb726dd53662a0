"""What the probes may ask: files below a root, a few commands, and facts of this process.

A recorded host is another `System`, so every decision can be tested for a machine that is not here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath

# The largest file read whole is /proc/cpuinfo: about 1.5 KB a CPU, so this holds a few thousand CPUs.
MAX_BYTES = 8 << 20


@dataclass(frozen=True)
class System:
    """A machine as one process sees it.

    `platform` and `arch` are spelled as `sys.platform` and `uname -m`; `cpus` are the numbers of the logical
    CPUs this process may run on; `rlimits` are its soft limits "AS" and "DATA" in bytes (None: unlimited);
    `run` gives the standard output of a command, empty when it cannot be had; `memory` gives total and
    available bytes where /proc does not.
    """

    root: Path
    platform: str
    arch: str
    cpus: frozenset[int]
    rlimits: dict[str, int | None]
    run: Callable[..., str]
    memory: Callable[[], tuple[int, int]]

    def path(self, path: str | PurePath) -> Path:
        return self.root / str(path).lstrip("/")

    def text(self, path: str | PurePath) -> str:
        """The file's text, or "" when it is missing, forbidden or no file."""
        try:
            with self.path(path).open("rb") as file:
                return file.read(MAX_BYTES).decode("utf-8", "replace")
        except (OSError, ValueError):  # ValueError: a NUL in a path taken from a damaged file
            return ""

    def number(self, path: str | PurePath) -> int | None:
        return number(self.text(path))

    def names(self, folder: str | PurePath) -> list[str]:
        """Names in a folder, sorted; none when it is missing or forbidden."""
        try:
            return sorted(os.listdir(self.path(folder)))  # noqa: PTH208 - names, not paths, are wanted
        except (OSError, ValueError):
            return []


def number(text: str) -> int | None:
    """The one decimal integer in `text`, or None ("max", "", anything else)."""
    try:
        return int(text)
    except ValueError:
        return None


def here() -> System:
    """The machine and the process that this runs on."""
    return System(
        root=Path("/"),
        platform=sys.platform,
        arch=os.uname().machine,
        cpus=_cpus(),
        rlimits=_rlimits(),
        run=_run,
        memory=_memory,
    )


def _cpus() -> frozenset[int]:
    if sys.platform == "linux":
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _rlimits() -> dict[str, int | None]:
    import resource

    limits = {name: resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[0] for name in ("AS", "DATA")}
    return {name: None if soft == resource.RLIM_INFINITY else soft for name, soft in limits.items()}


def _run(*command: str) -> str:
    import subprocess

    try:
        done = subprocess.run(command, capture_output=True, timeout=5, check=True, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode("utf-8", "replace")


def _memory() -> tuple[int, int]:
    # sysconf answers on Linux even where /proc is hidden; psutil knows macOS and the BSDs.
    if sys.platform == "linux":
        page = os.sysconf("SC_PAGE_SIZE")
        return os.sysconf("SC_PHYS_PAGES") * page, os.sysconf("SC_AVPHYS_PAGES") * page
    import psutil

    memory = psutil.virtual_memory()
    return memory.total, memory.available
