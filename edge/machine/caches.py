"""How large the caches are that memory has to be told from."""

from __future__ import annotations

import re

from edge.machine.system import System, number

CPUS = "/sys/devices/system/cpu"
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def last_level_bytes(system: System) -> int:
    """Bytes of the last-level caches of this process's CPUs, each counted once; 0 where the host does not tell."""
    found: dict[str, int] = {}
    for cpu in system.cpus:
        levels = []
        for name in system.names(f"{CPUS}/cpu{cpu}/cache"):
            folder = f"{CPUS}/cpu{cpu}/cache/{name}"
            size = re.fullmatch(r"(\d{1,9})([KMG])", system.text(f"{folder}/size").strip(), re.A)
            if size:
                shared = system.text(f"{folder}/shared_cpu_list").strip() or str(cpu)
                levels.append(
                    (number(system.text(f"{folder}/level")) or 0, shared, int(size[1]) * UNITS[size[2]])
                )
        if levels:
            _, shared, count = max(levels)
            found[shared] = count
    return sum(found.values())
