"""Prefixes on the disk: each kept state is a file, and the folder of them is all the index there is.

Any number of processes may use the folder at once. A file appears whole or not at all, is never changed, and its time
of change is when it was last used; who needs room removes those unused for longest, of whatever model. What is damaged
is removed, what is not ours is left alone, both with a warning, and neither reaches llama.cpp.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import time
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.engine import state_file
from edge.engine.radix import RadixTree, packed
from edge.engine.state_file import Damaged, Head
from edge.engine.state_key import StateKey
from edge.errors import UnsafeFile
from edge.home import states_folder
from edge.sizes import parse_size

NAME = re.compile(r"([0-9a-f]{32})-[0-9a-f]{32}\.state")  # of the key, of the tokens
PARTIAL = re.compile(r"\..{1,80}\.partial")
ABANDONED_S = 3600
SETTLED_NS = 10**8
BUDGET = 2 << 30
SHARE = 10  # of the disk's free space the cache takes no more than one part in so many


class CacheWarning(UserWarning):
    """A kept prefix that cannot be used, or none that can be kept; the answer does not depend on it."""


@dataclass(frozen=True)
class Entry:
    """A state on the disk: of `length` tokens, the first `shared` of which are those asked for."""

    path: Path
    length: int
    shared: int


@dataclass(frozen=True)
class Kept:
    """What `edge cache list` says of a file: model and its digest, tokens, bytes, Unix time of the last use."""

    model: str
    digest: str
    tokens: int
    bytes: int
    used: float
    path: Path


class DiskCache:
    """The states of one key in `folder`, which it makes, within `budget` bytes for all that is there.

    For one thread. Whatever the disk refuses is a CacheWarning, once; nothing is written after.
    """

    def __init__(self, folder: Path, key: StateKey, *, budget: int) -> None:
        self.folder, self.key, self.budget = folder, key, budget
        self._digest = key.digest
        self._tree: RadixTree[Path] = RadixTree()
        self._heads: dict[Path, Head] = {}
        self._ignored: set[Path] = set()
        self._seen = -1  # the folder's time of change when it was last looked through
        self._writes = True

    def longest(self, tokens: Sequence[int]) -> Entry | None:
        """The entry that shares most with the beginning of `tokens`; no state is read for it."""
        self._look()
        found = self._tree.longest(tokens)
        return found and Entry(found[0], len(self._heads[found[0]].tokens) // 4, found[1])

    def read(self, entry: Entry) -> tuple[list[int], NDArray[np.uint8]] | None:
        """The tokens and the state of an entry, now the last used; None where it is gone or of no use."""
        head = self._heads.get(entry.path)
        try:
            opened = state_file.open_ours(entry.path)
            try:
                now = state_file.read_head(opened, self.budget)  # it may have been written again meanwhile
                if head is None or (now.key, now.tokens) != (head.key, head.tokens):
                    raise UnsafeFile("it is another file than it was")
                state = state_file.read_state(opened, now)
                with suppress(OSError):  # a folder that is read-only serves as well
                    os.utime(opened)
            finally:
                os.close(opened)
        except (OSError, Damaged, UnsafeFile, MemoryError) as error:
            self._drop(entry.path)
            self._ignore(entry.path, error)
            return None
        return state_file.ids(head.tokens), state

    def write(self, tokens: Sequence[int], state: NDArray[np.uint8], *, replaces: bool = False) -> None:
        """Keep a state, and remove what was unused for longest where the budget has no room for it.

        With `replaces` the entries that `tokens` go on from are removed: a longer state that can be cut serves as well.
        """
        key = packed(tokens)
        digest = hashlib.blake2b(key, digest_size=16).hexdigest()
        path = self.folder / f"{self._digest.hex()[:32]}-{digest}.state"
        self._look()
        if not self._writes or not tokens:
            return
        if path in self._heads:  # the same tokens give the same state
            with suppress(OSError):
                os.utime(path)
            return
        size = state_file.FIXED.size + 4 * len(tokens) + state.nbytes + state_file.MOST_NAME
        try:
            if size > self.budget:
                raise OSError(0, f"{size:,} bytes are more than the {self.budget:,} it may take")
            prepare(self.folder)
            if replaces:
                for older in [path for path, head in self._heads.items() if key.startswith(head.tokens)]:
                    older.unlink(missing_ok=True)
            make_room(self.folder, self.budget - size)
            model = bytes.fromhex(self.key.model)
            state_file.write(
                path, self._digest, model, self.key.name, key, np.ascontiguousarray(state).data.cast("B")
            )
            self._ignored.discard(path)
        except OSError as error:
            self._writes = False
            warn(f"prefixes are not kept in {self.folder} from here on: {error.strerror or error}")

    def _look(self) -> None:
        """Bring the tree up to what lies in the folder, where that has changed."""
        try:
            changed = self.folder.stat().st_mtime_ns
            if changed == self._seen:
                return
            beginning = self._digest.hex()[:32]
            here = {path for path in named(self.folder) if path.name.startswith(beginning)}
        except OSError:
            changed, here = -1, set()
        for path in self._heads.keys() - here:
            self._drop(path)
        for path in here - self._heads.keys() - self._ignored:
            try:
                head = head_of(path, self.budget)
                if head.key != self._digest:
                    raise UnsafeFile("it is of another model or other settings than its name says")
            except (OSError, Damaged, UnsafeFile) as error:
                self._ignore(path, error)
            else:
                self._heads[path] = head
                self._tree.insert(state_file.ids(head.tokens), path)
        # Of two changes at once, as far as the file system's clock tells, the second may not have been seen.
        self._seen = changed if time.time_ns() - changed > SETTLED_NS else -1

    def _drop(self, path: Path) -> None:
        if head := self._heads.pop(path, None):
            self._tree.remove(state_file.ids(head.tokens), path)

    def _ignore(self, path: Path, error: Exception) -> None:
        if isinstance(error, FileNotFoundError):  # another process needed the room
            return
        if isinstance(error, Damaged):
            try:
                path.unlink()
                done = "damaged and was removed"
            except OSError:
                self._ignored.add(path)
                done = "damaged, and cannot be removed"
        else:
            self._ignored.add(path)
            done = "ignored"
        why = getattr(error, "strerror", None) or str(error) or "there is no memory for it"
        warn(f"the kept prefix {path} is {done}: {why}")


def open_cache(key: StateKey) -> DiskCache | None:
    """The user's cache of what `key` stands for; None where it may take no bytes. Raises RequestError, see below."""
    budget = default_budget(states_folder())
    return DiskCache(states_folder(), key, budget=budget) if budget else None


def default_budget(folder: Path) -> int:
    """Bytes that the cache may take: $EDGE_CACHE_BYTES (`512MiB`), else 2 GiB, or a tenth of the disk if that is less.

    What the cache has itself counts as free. Raises RequestError for a value that is no size; 0 keeps nothing.
    """
    if asked := os.environ.get("EDGE_CACHE_BYTES", "").strip():
        return 0 if asked == "0" else parse_size(asked)
    there = next((above for above in (folder, *folder.parents) if above.is_dir()), Path("/"))
    try:
        taken = sum(found.st_size for _, found in files(folder))
        return min(BUDGET, (shutil.disk_usage(there).free + taken) // SHARE)
    except OSError:
        return 0


def clear(folder: Path, digests: Collection[str] | None = None) -> tuple[int, int]:
    """Remove the states of these models, or all, damaged ones too; returns how many and their bytes. Raises OSError."""
    if digests is None:
        chosen = [path for path, _ in files(folder)]
    else:
        chosen = [entry.path for entry in listing(folder)[0] if entry.digest in digests]
    count = total = 0
    for path in chosen:
        with suppress(FileNotFoundError):
            size = path.lstat().st_size
            path.unlink()
            count, total = count + 1, total + size
    return count, total


def listing(folder: Path) -> tuple[list[Kept], list[Path]]:
    """All that is kept, the last used first, and the files that are damaged or not ours. Raises OSError."""
    kept, odd = [], []
    for path in named(folder):
        try:
            head, found = head_of(path, 1 << 62), path.stat()
        except FileNotFoundError:
            continue
        except (OSError, Damaged, UnsafeFile):
            odd.append(path)
            continue
        tokens = len(head.tokens) // 4
        kept.append(Kept(head.name, head.model.hex(), tokens, found.st_size, found.st_mtime, path))
    return sorted(kept, key=lambda entry: -entry.used), sorted(odd)


def named(folder: Path) -> Iterator[Path]:
    """The paths in `folder` that are named like states; none where there is no folder. Raises OSError."""
    with suppress(FileNotFoundError):
        yield from (folder / name for name in os.listdir(folder) if NAME.fullmatch(name))  # noqa: PTH208


def files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """The plain files named like states, with what `stat` says of each. Raises OSError."""
    for path in named(folder):
        with suppress(FileNotFoundError):
            found = path.lstat()
            if stat.S_ISREG(found.st_mode):
                yield path, found


def head_of(path: Path, largest: int) -> Head:
    """The checked head of a file, its state unread. Raises Damaged, UnsafeFile, OSError."""
    opened = state_file.open_ours(path)
    try:
        return state_file.read_head(opened, largest)
    finally:
        os.close(opened)


def prepare(folder: Path) -> None:
    """Make the folder, for nobody else to look into: a prefix is what somebody said. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.geteuid():
        raise OSError(0, "it is not a folder of yours")
    if found.st_mode & 0o077:
        folder.chmod(0o700)


def make_room(folder: Path, room: int) -> None:
    """Remove those unused for longest until all take at most `room` bytes, and abandoned drafts. Raises OSError."""
    there = sorted(files(folder), key=lambda file: file[1].st_mtime_ns)
    total = sum(found.st_size for _, found in there)
    for path, found in there:
        if total <= room:
            break
        path.unlink(missing_ok=True)
        total -= found.st_size
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            if PARTIAL.fullmatch(path.name) and path.lstat().st_mtime < time.time() - ABANDONED_S:
                path.unlink()


def warn(text: str) -> None:
    warnings.warn(CacheWarning(" ".join(text.split())), stacklevel=4)
