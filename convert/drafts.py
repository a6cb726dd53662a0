"""The folder in which a conversion is made: locked, hidden, and kept when it is interrupted, so that it goes on."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import psutil

from edge.errors import ConversionError, RequestError, StoreError, UnsafeFile


@dataclass(frozen=True)
class Drafts:
    """An open working folder. `done` are the steps that an earlier run finished."""

    folder: Path
    done: frozenset[str]
    journal: TextIO

    @property
    def written(self) -> int:
        """Bytes on the disk; drafts have holes where nothing is yet."""
        return sum(path.stat().st_blocks * 512 for path in self.folder.iterdir())

    def finish(self, step: str) -> None:
        """Note a step, whose bytes are written."""
        self.journal.write(step + "\n")
        self.journal.flush()


@contextmanager
def drafts(out: Path, title: str, work: Mapping[str, Any]) -> Iterator[Drafts]:
    """A folder below `out` for the conversion `title`; `work` is all that its bytes depend on.

    An error that another run would meet again takes the folder along; an interruption, a crash or a full disk
    leaves it, and the next call with the same `work` since the machine started goes on from there. Raises
    StoreError where `out` cannot be written or another process is at the same conversion.
    """
    folder = out / f".{title}.converting"
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        folder.mkdir(exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(
                f"{title} is being converted into {out} by another process",
                hint="let it finish, or choose --name",
            ) from None
        try:
            with disk_errors(out), opened(folder, work) as found:
                yield found
        except (ConversionError, UnsafeFile, RequestError):
            shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


@contextmanager
def opened(folder: Path, work: Mapping[str, Any]) -> Iterator[Drafts]:
    """The journal of this very work, continued, or an empty one."""
    # What was written and not synced is there only until the machine stops.
    facts = json.dumps({**work, "boot": round(psutil.boot_time(), -1)}, sort_keys=True, default=str)
    key, path = hashlib.sha256(facts.encode()).hexdigest(), folder / "journal"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    if not lines or lines[0] != key:
        for old in folder.iterdir():
            if old.name != "lock":
                old.unlink()
        path.write_text(key + "\n", encoding="utf-8")
        lines = [key]
    with path.open("a", encoding="utf-8") as journal:
        yield Drafts(folder, frozenset(lines[1:]), journal)


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """What the disk refuses, as a StoreError."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{folder} cannot be written: {error.strerror}",
            hint="run it again when that is mended: it goes on",
        ) from None


def reserve(folder: Path, needed: int) -> None:
    """Raise StoreError where the disk has not so many bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StoreError(
            f"it takes {needed:,} bytes in {folder} and {free:,} are free", hint="free some space"
        )
