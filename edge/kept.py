"""Files that are replaced whole; and the JSON files of what was measured, below EDGE_HOME, by one process at a time."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any, BinaryIO

from edge.errors import StoreError

PRIVATE = 0o600  # readable by the user alone


@contextmanager
def whole(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` once it is whole and on the disk; after an error nothing is
    changed and nothing left beside it. `mode` is narrowed by the umask. Raises OSError."""
    draft = path.with_name(f".{path.name}.{token_hex(4)}.partial")
    try:
        with open(draft, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise


def write(path: Path, content: Callable[[], Any]) -> Path:
    """Put what `content` gives in the file's place. It may read the file: no other process writes it meanwhile.

    Raises StoreError for what the disk refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.parent), whole(path, PRIVATE) as file:
            file.write(json.dumps(content(), indent=1).encode())
    except OSError as error:
        raise refused(path, error) from error
    return path


def check(path: Path) -> None:
    """Raise StoreError where `write` could not put the file in its place."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise refused(path, error) from error


def refused(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"what was measured cannot be kept in {path.parent}: {error.strerror}",
        hint="make room or set EDGE_HOME to a folder that can be written",
    )


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
