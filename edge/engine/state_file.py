"""One kept state in one file: what it is of, its tokens, and the bytes llama.cpp gave for them.

    magic · key · model · tokens · state bytes · length of the name · crc32 of the state · crc32 of all before it
    name (UTF-8) · token ids (int32) · state                                                     little-endian

Nothing in it is believed before it is checked: that it is a plain file of this user, exactly as long as its head says,
of the key it is asked for, with both checksums right. A checksum is against damage, not against an enemy who can write
into the folder, which is closed to others: of 46 MB CRC-32 takes 24 ms here, BLAKE2b 107, SHA-256 116.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from array import array
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

import numpy as np
from numpy.typing import NDArray

from edge.errors import UnsafeFile

MAGIC = b"edge-kv\x01"
FIXED = struct.Struct("<8s32s32sIQHII")
MOST_TOKENS = 1 << 24
MOST_NAME = 200  # bytes
PIECE = 1 << 20  # bytes that are summed while they are still in the processor's cache


class Damaged(Exception):
    """A file of ours whose bytes are not those that were written; of no use to anyone."""


@dataclass(frozen=True)
class Head:
    """All but the state. `key` and `model` are digests of 32 bytes, `name` is what the model was called."""

    key: bytes
    model: bytes
    name: str
    tokens: bytes
    state_bytes: int
    state_sum: int

    @property
    def state_at(self) -> int:
        """Where in the file the state begins."""
        return FIXED.size + len(self.name.encode()) + len(self.tokens)


def write(path: Path, key: bytes, model: bytes, name: str, tokens: bytes, state: memoryview) -> None:
    """Write the file whole or not at all. Raises OSError.

    It is not waited for until it is on the disk (0.15 s for 46 MB here): what a power cut leaves of it, its checksums
    find out.
    """
    called = name.encode("utf-8", "replace")[:MOST_NAME].decode("utf-8", "ignore").encode()
    fields = FIXED.pack(MAGIC, key, model, len(tokens) // 4, len(state), len(called), zlib.crc32(state), 0)
    head = fields[:-4] + struct.pack("<I", zlib.crc32(fields[:-4] + called + tokens)) + called + tokens
    draft = path.with_name(f".{path.name}.{token_hex(4)}.partial")
    try:
        opened = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(opened, "wb") as file:
            file.write(head)
            file.write(state)
        draft.replace(path)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise


def open_ours(path: Path) -> int:
    """A descriptor of a plain file that belongs to this user. Raises UnsafeFile for anything else, OSError."""
    if not stat.S_ISREG(path.lstat().st_mode):
        raise UnsafeFile("it is not a plain file")
    opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    found = os.fstat(opened)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        os.close(opened)
        raise UnsafeFile("it is not a plain file of yours")
    return opened


def read_head(opened: int, largest: int) -> Head:
    """The checked head. Raises Damaged, UnsafeFile for a state of more than `largest` bytes, OSError."""
    size = os.fstat(opened).st_size
    fixed = os.pread(opened, FIXED.size, 0)
    if len(fixed) < FIXED.size or not fixed.startswith(MAGIC):
        raise Damaged("it does not begin like one")
    _, key, model, tokens, state_bytes, called, state_sum, head_sum = FIXED.unpack(fixed)
    variable = called + 4 * tokens
    if FIXED.size + variable + state_bytes != size:
        raise Damaged("it is not as long as it says")
    if tokens > MOST_TOKENS or state_bytes > largest:
        raise UnsafeFile("it is larger than anything kept here")
    rest = os.pread(opened, variable, FIXED.size)
    if zlib.crc32(fixed[:-4] + rest) != head_sum:
        raise Damaged("its head has changed")
    return Head(key, model, rest[:called].decode("utf-8", "replace"), rest[called:], state_bytes, state_sum)


def read_state(opened: int, head: Head) -> NDArray[np.uint8]:
    """The checked state. Raises Damaged, OSError, MemoryError."""
    state = np.empty(head.state_bytes, np.uint8)
    view, done, total = state.data, 0, 0
    os.lseek(opened, head.state_at, os.SEEK_SET)
    while done < len(view):
        count = os.readv(opened, [view[done : done + PIECE]])
        if not count:
            raise Damaged("it has been cut")
        total = zlib.crc32(view[done : done + count], total)
        done += count
    if total != head.state_sum:
        raise Damaged("its state has changed")
    return state


def ids(packed: bytes) -> list[int]:
    """Token ids of the bytes that a head has them in."""
    return array("i", packed).tolist()
