"""The JSON files of what was measured, below EDGE_HOME: replaced whole, and by one process at a time."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from edge.errors import StoreError


def write(path: Path, content: Callable[[], Any]) -> Path:
    """Put what `content` gives in the file's place. It may read the file: no other process writes it meanwhile.

    Raises StoreError for what the disk refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.parent):
            number, name = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
            try:
                with os.fdopen(number, "w", encoding="utf-8") as file:
                    json.dump(content(), file, indent=1)
                    file.flush()
                    os.fsync(file.fileno())
                Path(name).replace(path)
            except BaseException:
                with suppress(OSError):
                    Path(name).unlink()
                raise
    except OSError as error:
        raise StoreError(
            f"what was measured cannot be kept in {path.parent}: {error.strerror}",
            hint="make room or set EDGE_HOME to a folder that can be written",
        ) from error
    return path


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder against others that write here; the lock leaves no file and goes with the process.

    Where folders cannot be locked (Windows, NFS) the last one who writes wins.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
