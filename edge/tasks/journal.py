"""An output file that a run appends whole lines to, and that the same run goes on with after whatever ended it.

Beside it lies `NAME.batch`, a JSON object that says what the lines follow from; it is written before the first of
them and never again. How many are done is what the lines themselves say, so a kill at any moment leaves nothing to
repair but a last line half written, which is cut off.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Any

from edge.errors import RequestError, StoreError

if TYPE_CHECKING:
    from edge.chat.loaded import LoadedModel
    from edge.engine import Sampling

ENDS = 1 << 20  # bytes of a file of weights that are looked at, from either end
LONGEST = 1 << 28  # bytes of a line; an output that has longer ones is not ours
ANOTHER = "name another --output, or remove this one to begin anew"


class Journal:
    """The lines of an output; `rows` of them were there, `errors` of which are no answers."""

    def __init__(self, path: Path, descriptor: int, rows: int, errors: int, size: int) -> None:
        self.path, self.descriptor, self.size = path, descriptor, size
        self.rows, self.errors = rows, errors

    def write(self, line: str) -> None:
        """Append a line, which reaches the kernel whole or not at all. Raises StoreError for a disk that is full."""
        rest = memoryview(line.encode() + b"\n")
        whole = self.size + len(rest)
        try:
            while rest:
                rest = rest[os.write(self.descriptor, rest) :]
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self.descriptor, self.size)
            raise StoreError(
                f"{self.path} cannot be written: {error.strerror}",
                hint="make room and run the same again: it goes on where the output ends",
            ) from error
        self.size = whole


@contextmanager
def opened(path: Path, made_of: Mapping[str, Any] | None) -> Iterator[Journal]:
    """The output at `path`, new or to go on with; nobody else writes it meanwhile.

    `made_of` is what its lines follow from (plain JSON values); None is for an input that cannot be read again, and
    takes no output that has lines. Raises RequestError for an output of something else, in use or no file, and
    StoreError for one that cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK, 0o666)
    except OSError as error:
        raise RequestError(
            f"{path} cannot be written: {error.strerror}", hint="name another --output"
        ) from None
    try:
        if not S_ISREG(os.fstat(descriptor).st_mode):
            raise RequestError(f"{path} is not a regular file", hint="- writes to stdout")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RequestError(
                f"another run writes {path}", hint="wait for it, or name another --output"
            ) from None
        beside = path.with_name(f"{path.name}.batch")
        rows = errors = size = 0
        if os.fstat(descriptor).st_size:
            check_same(path, beside, made_of)
            rows, errors, size = counted(path)
            os.ftruncate(descriptor, size)
        elif made_of is not None:
            note(beside, made_of)
        yield Journal(path, descriptor, rows, errors, size)
    finally:
        os.close(descriptor)


def check_same(path: Path, beside: Path, made_of: Mapping[str, Any] | None) -> None:
    """Raise RequestError unless the output's lines follow from what the run is given."""
    if made_of is None:
        raise RequestError(
            f"{path} has lines, and stdin cannot be read again to go on with it",
            hint="give the prompts as --input FILE, or name another --output",
        )
    try:
        before = json.loads(beside.read_text(encoding="utf-8"))
        if not isinstance(before, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError, RecursionError):
        raise RequestError(f"{path} has lines, and no {beside.name} says what of", hint=ANOTHER) from None
    now = json.loads(json.dumps(made_of))
    none = object()
    other = [name for name in {**now, **before} if before.get(name, none) != now.get(name, none)]
    if other:
        raise RequestError(
            f"{path} was begun with another {', '.join(map(str, other[:5]))}",
            hint=f"run it as it was begun, or {ANOTHER}",
        )


def counted(path: Path) -> tuple[int, int, int]:
    """The whole lines of an output, how many are errors, and their bytes.

    Raises RequestError for one that is not the next row's.
    """
    rows = errors = size = 0
    try:
        with path.open("rb") as lines:
            while (line := lines.readline(LONGEST)).endswith(b"\n"):
                try:
                    row = json.loads(line)
                    index = row["index"]
                except (ValueError, TypeError, KeyError, RecursionError):
                    index = None
                if index != rows:
                    raise RequestError(
                        f"{path}: line {rows + 1} is not the answer to row {rows}", hint=ANOTHER
                    )
                rows, errors, size = rows + 1, errors + ("error" in row), size + len(line)
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}", hint=ANOTHER) from None
    return rows, errors, size


def note(beside: Path, made_of: Mapping[str, Any]) -> None:
    """Write down what the lines follow from, before there are any."""
    draft = beside.with_name(f"{beside.name}.part")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(json.dumps(made_of, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(beside)
    except OSError as error:
        with suppress(OSError):
            draft.unlink()
        raise StoreError(
            f"{beside} cannot be written: {error.strerror}", hint="name another --output"
        ) from error


def made_of(file: Path, model: LoadedModel, base: Sampling) -> dict[str, Any]:
    """What the answers to a file follow from, as plain JSON values.

    Not among it: how many run at a time and on how many threads, since a run may be gone on with where there is less
    room.
    """
    return {
        "input": digest([file]),
        "model": model.plan.artifact,
        "level": model.plan.level,
        "weights": digest(weights(model.plan.path), ends=True),
        "context": model.engine.context,
        **asdict(base),
    }


def weights(path: Path) -> Sequence[Path]:
    """The files of a model."""
    return sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]


def digest(files: Iterable[Path], *, ends: bool = False) -> str:
    """SHA-256 of files; with `ends` of the size, the first and the last MiB of each, for gigabytes of weights.

    Raises RequestError for one that cannot be read.
    """
    found = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                found.update(f"{path.name if ends else ''} {size}\n".encode())
                file.seek(0)
                if ends and size > 2 * ENDS:
                    found.update(file.read(ENDS))
                    file.seek(-ENDS, 2)
                while piece := file.read(ENDS):
                    found.update(piece)
        except OSError as error:
            raise RequestError(f"{path} cannot be read: {error.strerror}", hint="check the path") from None
    return found.hexdigest()
