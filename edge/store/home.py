"""Where the store is on disk, who may write to it, and what its errors are called."""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge.errors import Offline, RequestError, StoreError
from edge.home import home
from edge.store.records import Progress, Report

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,95}")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
BARRED = (errno.EROFS, errno.EACCES, errno.EPERM)


def models_folder() -> Path:
    """Every model has its folder in here."""
    return home() / "models"


def folder_of(name: str) -> Path:
    """The folder of a model. Raises RequestError unless the name is one (CVE-2024-37032: names are paths)."""
    if not NAME.fullmatch(name):
        raise RequestError(
            f"{name!r} is not a model name",
            hint="use lower-case letters, digits, dot, dash and underscore, beginning with a letter or digit",
        )
    return models_folder() / name


def name_for(file: str) -> str:
    """A model name made from a file name: `SmolLM2-135M.Q4_1.gguf` → `smollm2-135m.q4_1`."""
    stem = re.sub(
        r"-00001-of-\d{5}$", "", re.sub(r"\.(gguf|onnx|safetensors)$", "", file, flags=re.IGNORECASE)
    )
    name = re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("._-")[:96]
    return name or "model"


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn what the disk refuses into one line that says what to do."""
    try:
        yield
    except OSError as error:
        where = Path(error.filename or folder)
        if error.errno in FULL:
            raise StoreError(
                f"no room to write in {folder}: {error.strerror}",
                hint="free some space, or set EDGE_HOME to a larger disk; a partial download is resumed",
            ) from error
        ours = where.is_relative_to(folder.parent) or folder.is_relative_to(where)
        hint = "set EDGE_HOME to a folder you can write to" if ours else "check that you may read it"
        hint = hint if error.errno in BARRED else ""
        raise StoreError(f"cannot use {where}: {error.strerror or error}", hint=hint) from error


@contextmanager
def locked(name: str, report: Report) -> Iterator[Path]:
    """Hold a model's folder against other processes; yields the folder. The lock lies outside of it."""
    from filelock import FileLock, Timeout

    folder = folder_of(name)
    locks = folder.parent / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(locks / f"{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report(Progress("wait", name, 0, None))
        lock.acquire()
    try:
        yield folder
    finally:
        lock.release()


def room_for(folder: Path, needed: int) -> None:
    """Raise StoreError, with both numbers, unless the disk of `folder` has `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StoreError(
            f"{needed:,} bytes are needed in {folder} and {free:,} are free",
            hint="free some space, or set EDGE_HOME to a larger disk",
        )


def offline() -> str:
    """The environment variable that rules the network out; empty when none does."""
    switches = ("EDGE_OFFLINE", "HF_HUB_OFFLINE")
    return next((s for s in switches if os.environ.get(s, "").lower() in ("1", "true", "yes", "on")), "")


def stay_online(ref: str) -> None:
    """Raise Offline when the environment rules the network out."""
    if switch := offline():
        raise Offline(
            f"{ref} is not on this disk and {switch} rules out the network",
            hint=f"once online, run `edge pull {shlex.quote(ref)}`",
        )
