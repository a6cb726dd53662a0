"""The folder in which a conversion is made: locked, hidden, and kept when it is interrupted, so that it goes on."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
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

    def steps_done(self, drafts: Mapping[Path, int]) -> frozenset[str]:
        """`done` where all these drafts are there in these sizes; none where one went, as when it got its name."""
        whole = all(path.exists() and path.stat().st_size == size for path, size in drafts.items())
        return self.done if whole else frozenset()


@contextmanager
def drafts(out: Path, title: str, work: Mapping[str, Any]) -> Iterator[Drafts]:
    """A folder below `out` for the conversion `title`; `work` is all that its bytes depend on.

    An error that another run would meet again takes the folder along; an interruption, a crash or a full disk
    leaves it, and the next call with the same `work` since the machine started goes on from there. Raises
    StoreError where `out` cannot be written or another process is at the same conversion.
    """
    folder = out / f".{title}.converting"
    with disk_errors(out):
        lock = claimed(folder)
    if lock is None:
        raise StoreError(
            f"{title} is being converted into {out} by another process",
            hint="let it finish, or choose --name",
        )
    try:
        try:
            with disk_errors(out), opened(folder, work) as found:
                yield found
        except (ConversionError, UnsafeFile, RequestError):
            clear(folder)
            raise
        clear(folder)
    finally:
        os.close(lock)


def claimed(folder: Path) -> int | None:
    """A descriptor that keeps the folder, made where it is not there, for this process; None where another has it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder / "lock"
    while True:
        with suppress(FileNotFoundError):
            if not stat.S_ISDIR(folder.lstat().st_mode):  # nor a link to one: all in it is removed in the end
                raise StoreError(f"{folder} is no folder", hint="remove it")
        try:
            folder.mkdir(exist_ok=True)
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except (FileExistsError, FileNotFoundError):
            if not folder.parent.is_dir():
                raise
            continue  # its owner has just cleared it up
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        # A lock that went with its folder since it was opened keeps nobody away.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), path.stat()):
                return lock
        os.close(lock)


def clear(folder: Path) -> None:
    """Remove the folder, the lock after all that it keeps: whoever comes then begins with an empty folder."""
    with suppress(OSError):
        for path in folder.iterdir():
            if path.name != "lock":
                path.unlink()
        (folder / "lock").unlink()
        folder.rmdir()


@contextmanager
def opened(folder: Path, work: Mapping[str, Any]) -> Iterator[Drafts]:
    """The journal of this very work, continued, or an empty one."""
    # What was written and not synced is there only until the machine stops.
    facts = json.dumps({**work, "boot": round(psutil.boot_time(), -1)}, sort_keys=True, default=str)
    key, path = hashlib.sha256(facts.encode()).hexdigest(), folder / "journal"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    if not lines or lines[0] != key:
        for old in folder.iterdir():
            if old.name != "lock":
                old.unlink()
        path.write_text(key + "\n", encoding="utf-8")
        lines = [key]
    with path.open("a", encoding="utf-8") as journal:
        yield Drafts(folder, frozenset(lines[1:]), journal)


@contextmanager
def disk_errors(folder: Path, hint: str = "run it again when that is mended: it goes on") -> Iterator[None]:
    """What the disk refuses, as a StoreError."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{folder} cannot be written: {error.strerror}", hint=hint) from None


def reserve(folder: Path, needed: int) -> None:
    """Raise StoreError where the disk has not so many bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StoreError(
            f"it takes {needed:,} bytes in {folder} and {free:,} are free", hint="free some space"
        )
