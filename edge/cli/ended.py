"""What is done where a verb that has started processes is itself ended."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def by_exception() -> Iterator[None]:
    """Let SIGTERM be an exception as Ctrl-C is, so that processes and temporary folders go with this one."""
    handler = signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
