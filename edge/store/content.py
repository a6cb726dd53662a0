"""Whether a file is what it was promised to be: its first bytes, its length, its hash."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from edge.errors import HashMismatch, UnsafeFile
from edge.store.records import Progress, Report
from edge.store.refs import Wheel

CHUNK = 1 << 20
TEXT = (".md", ".html", ".txt")


@dataclass(frozen=True)
class Remote:
    """A file on a server, and what to tell a user whom the server turns away."""

    url: str
    headers: tuple[tuple[str, str], ...] = ()
    refused: str = "check the address"


@dataclass(frozen=True)
class Wanted:
    """A file to get, and all that its publisher promises of it."""

    name: str
    source: str
    origin: Remote | tuple[Wheel, ...]
    bytes: int | None
    sha256: str = ""
    git_sha1: str = ""
    promised_by: str = ""


def look(name: str, head: bytes) -> None:
    """Raise UnsafeFile when a file's first bytes are not those of what its name says."""
    if name.endswith(TEXT):
        return
    start = head[:256].lstrip().lower()
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        raise UnsafeFile(
            f"{name} is a Git LFS pointer, not the model it stands for",
            hint="fetch the real file, for example with `git lfs pull` or hf:owner/repo",
        )
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UnsafeFile(
            f"{name} is a web page, not a model", hint="check the address; a login page may answer there"
        )
    if name.lower().endswith(".safetensors") and head[8:9] == b"{":
        return  # its first eight bytes are a length, and some lengths look like a pickle
    if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        raise UnsafeFile(
            f"{name} is a pickle or an archive, which may run code when it is opened",
            hint="take the .safetensors or .gguf file of that model",
        )
    if name.lower().endswith(".gguf") and not head.startswith(b"GGUF"):
        raise UnsafeFile(
            f"{name} is not a GGUF file (it begins with {head[:4]!r})", hint="check where it came from"
        )
    if name.lower().endswith(".safetensors"):
        raise UnsafeFile(f"{name} is not a safetensors file", hint="check where it came from")


def look_at(path: Path) -> None:
    """`look` at a file on disk."""
    with path.open("rb") as file:
        look(path.name, file.read(256))


def digest(path: Path, report: Report) -> str:
    """The sha256 of a file, read in pieces of 1 MiB."""
    total, done, running = path.stat().st_size, 0, hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            running.update(piece)
            done += len(piece)
            report(Progress("check", path.name, done, total))
    return running.hexdigest()


def git_sha1(path: Path) -> str:
    """The id that git gives the file: all that a hub states of files outside of LFS."""
    running = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            running.update(piece)
    return running.hexdigest()


def prove(path: Path, wanted: Wanted, sha256: str) -> str:
    """Hold a file with hash `sha256` to its promise; returns what it was checked against.

    Raises UnsafeFile by its first bytes, HashMismatch by its hash or length.
    """
    with path.open("rb") as file:
        look(wanted.name, file.read(256))
    size = path.stat().st_size
    if wanted.bytes is not None and size != wanted.bytes:
        raise HashMismatch(f"{wanted.name} is {size:,} bytes and {wanted.bytes:,} were promised", hint=AGAIN)
    if wanted.sha256:
        if sha256 != wanted.sha256:
            raise HashMismatch(
                f"{wanted.name} has sha256 {sha256}; {wanted.promised_by} promised {wanted.sha256}",
                hint=AGAIN,
            )
        return f"sha256 from {wanted.promised_by}"
    if wanted.git_sha1:
        if git_sha1(path) != wanted.git_sha1:
            raise HashMismatch(
                f"{wanted.name} is not git blob {wanted.git_sha1}, as {wanted.promised_by} promised",
                hint=AGAIN,
            )
        return f"git sha1 from {wanted.promised_by}"
    if isinstance(wanted.origin, tuple):
        return "sha256 from the wheel's own list"
    return "length only" if wanted.bytes is not None else "nothing: its source promises no hash"


AGAIN = "it was not kept; pull it again, and do not trust its source if this repeats"
