"""Peak memory of a process."""

from __future__ import annotations

import resource
import sys


def peak_rss_bytes() -> int:
    """The largest resident size this process has had, in bytes (getrusage; KiB on Linux, bytes on macOS)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
