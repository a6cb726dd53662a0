"""The levels that a model could be converted to here, each with the header its file would have; no weight is read.

llama.cpp's quantizer chooses the types (a dry run over a file of holes), our own writer lays the head out: bytes are
those that the file would have.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from edge import gguf_header
from edge.errors import EdgeError
from edge.gguf_header import Header, Tensor

from . import gguf_source
from .files import File, check_levels, file_of
from .quantize import Settings, levels
from .source import Source, opened, title_of

DEFAULT = Settings()
FINGERPRINT_BYTES = 16 << 20  # of vectors, more than any model has


@dataclass(frozen=True)
class Level:
    """A file that could be made: its name, level and size, the header it would have.

    `needs_importance`: llama.cpp makes it only with an importance matrix.
    """

    name: str
    level: str
    bytes: int
    header: Header
    needs_importance: bool


@dataclass(frozen=True)
class Levels:
    """All levels of one source. `types` are the source's own by tensor; `fingerprint` is as `fingerprint_of` gives it.

    of_level   the level of a GGUF file that is the source, whose quality bounds that of all; empty for a checkpoint
    """

    title: str
    levels: tuple[Level, ...]
    types: dict[str, str]
    fingerprint: str
    of_level: str


def candidates(
    path: Path, wanted: Sequence[str] = (), *, name: str | None = None, settings: Settings = DEFAULT
) -> Levels:
    """What `convert` could make of the checkpoint folder or the GGUF file at `path`, by default at every level.

    Raises as `convert` does before it writes.
    """
    check_levels(wanted or [*levels()])
    with opened(path, title_of(path, name), settings.prune_layers) as source, TemporaryDirectory() as folder:
        scratch = Path(folder)
        # One head at a time: with a large vocabulary it is megabytes, and there are thirty levels.
        files = (file_of(source, level, scratch, settings, prove=True) for level in wanted or levels())
        first: Header | None = None
        found = []
        for file in files:
            first = first or header_of(file, scratch)
            found.append(
                Level(
                    name=file.draft.name,
                    level=file.level,
                    bytes=file.head.size,
                    header=typed(first, file),
                    needs_importance=file.needs_importance,
                )
            )
        return Levels(
            title=source.title,
            levels=tuple(found),
            types=own_types(path, source),
            fingerprint=fingerprint(source.architecture, vectors(source)),
            of_level="" if path.is_dir() else str(source.fields["edge.requantized_from"]),
        )


def header_of(file: File, scratch: Path) -> Header:
    """The header of a file that could be written: its head over holes, read as any file's is."""
    blank = scratch / "head.gguf"
    blank.write_bytes(file.head.data)
    os.truncate(blank, file.head.size)
    try:
        return gguf_header.read(blank)
    finally:
        blank.unlink()


def typed(header: Header, file: File) -> Header:
    """The header with another level's types: the metadata of all levels is the same but for its number."""
    start = len(file.head.data)
    tensors = tuple(
        Tensor(name, entry.shape[::-1], entry.type, file.head.places[name] - start, entry.bytes)
        for name, entry in file.entries.items()
    )
    metadata = {**header.metadata, "general.file_type": levels()[file.level]}
    return replace(header, metadata=metadata, tensors=tensors, data_offset=start, file_bytes=file.head.size)


def own_types(path: Path, source: Source) -> dict[str, str]:
    """The type of each tensor as the source has it: what no level can restore."""
    if path.is_dir():
        return {entry.name: entry.type for entry in source.entries}
    with gguf_source.open(path) as file:  # all parts of a split one
        return dict(file.types)


def fingerprint_of(path: Path) -> str:
    """What all files of one model have in common: its architecture, and its vectors, which no level changes.

    Empty for a file that is no GGUF model or has none. Levels of one model have the same, whoever made them; two
    models trained from one have not, but for one whose training left every norm alone.
    """
    try:
        header = gguf_header.read(path)
        found = [tensor for tensor in header.tensors if len(tensor.shape) == 1]
        if not found or any(tensor.type != "F32" for tensor in found):
            return ""
        if sum(tensor.bytes for tensor in found) > FINGERPRINT_BYTES:
            return ""
        with path.open("rb", buffering=0) as file:
            return fingerprint(
                header.architecture,
                [
                    (tensor.name, os.pread(file.fileno(), tensor.bytes, header.data_offset + tensor.offset))
                    for tensor in found
                ],
            )
    except (OSError, EdgeError):
        return ""


def vectors(source: Source) -> list[tuple[str, bytes]]:
    """Each vector of a source as float32, by name."""
    extra = [(name, values.tobytes()) for name, values in source.extra.items() if values.ndim == 1]
    own = [
        (entry.name, b"".join(piece.tobytes() for piece in source.chunks(entry.name, 1 << 20, False)))
        for entry in source.entries
        if len(entry.shape) == 1
    ]
    return [*own, *extra]


def fingerprint(architecture: str, vectors: Sequence[tuple[str, bytes]]) -> str:
    found = hashlib.sha256(architecture.encode())
    for name, data in sorted(vectors):
        found.update(f"\n{name} {len(data)}\n".encode() + data)
    return found.hexdigest()
