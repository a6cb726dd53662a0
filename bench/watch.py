"""Run one command and say how long it took and how much memory it had.

    python -m edge.bench.watch COMMAND [ARG…]

Prints {"wall_s", "peak_rss_bytes", "exit_code", "last_words"} as JSON. The kernel counts towards a process's peak
what its parent held when it started it; this parent is small, so that the floor is a bare interpreter.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from time import perf_counter


def main() -> None:
    with tempfile.TemporaryFile() as errors:
        started = perf_counter()
        process = subprocess.Popen(
            sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        words = errors.read().decode("utf-8", "replace").strip().splitlines()
    result = {
        "wall_s": wall,
        "peak_rss_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "exit_code": process.returncode,
        "last_words": words[-1] if words else "no output",
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
