"""Lines on stdout, each complete: a run that is interrupted or killed leaves none half written."""

from __future__ import annotations

import os
import signal
import stat
import sys
import time

BLOCK = 4096  # bytes; a pipe takes so many at once or not at all, and a page of a file holds them
WAIT = 0.2  # seconds that a line for a file may wait for others


class Lines:
    """Writes whole lines: at once where somebody may be reading, gathered up to a page for a file."""

    def __init__(self) -> None:
        if sys.stdout is None:
            raise OSError(9, "it is closed")
        sys.stdout.flush()
        self.descriptor = sys.stdout.fileno()
        self.gather = stat.S_ISREG(os.fstat(self.descriptor).st_mode)
        self.held = b""
        self.since = 0.0

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None or not issubclass(kind, OSError):
            self.flush()

    def write(self, line: str) -> None:
        """A line, without its end. Raises OSError where it cannot be written."""
        encoded = line.encode() + b"\n"
        if len(self.held) + len(encoded) > BLOCK:
            self.flush()
        self.held += encoded
        if not self.gather or time.monotonic() > self.since + WAIT:
            self.flush()

    def flush(self) -> None:
        # Ctrl-C waits while a line is under way: it would cut it where a slow reader took only its beginning. Blocking
        # the signal is not enough, since another thread gets it then, and Python raises it here all the same.
        pressed = list[int]()
        before = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
        try:
            while self.held:
                self.held = self.held[os.write(self.descriptor, self.held) :]
        finally:
            self.since = time.monotonic()
            signal.signal(signal.SIGINT, before)
        if pressed and callable(before):
            before(pressed[0], None)
