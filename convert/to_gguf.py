"""A checkpoint in, GGUF files out: one read of the source for all levels, each file proven before it has its name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edge.errors import StoreError
from edge.peak import peak_rss_bytes
from edge.store.records import name_it

from . import proof
from .drafts import drafts, reserve
from .files import File, check_levels, file_of
from .imatrix import Importance
from .quantize import Settings, check_importance
from .source import Source, opened, title_of
from .stream import Report, silent, stream

DEFAULT = Settings()


@dataclass(frozen=True)
class Size:
    """A file that could be written."""

    level: str
    bytes: int
    bits_per_weight: float
    fell_back: tuple[str, ...]
    needs_importance: bool


@dataclass(frozen=True)
class Made:
    """One file that was written; sizes in bytes, `seconds` of encoding and writing it.

    What two levels share is encoded once and counts for the first.
    `fell_back` are the tensors whose rows the level's own type does not divide. `peak_rss_bytes` is the process's.
    `notes` are what a user should know of the source.
    """

    path: Path
    level: str
    bytes: int
    bits_per_weight: float
    fell_back: tuple[str, ...]
    seconds: float
    peak_rss_bytes: int
    certificate: proof.Certificate | None
    notes: tuple[str, ...]


def convert(
    path: Path,
    wanted: Sequence[str],
    out: Path,
    *,
    name: str | None = None,
    settings: Settings = DEFAULT,
    prove: bool = True,
    report: Report = silent,
) -> tuple[Made, ...]:
    """As `make`, of the checkpoint folder or the GGUF file at `path`; the files' names begin with `name`.

    Raises UnsafeFile too, for one that is damaged, and ConversionError for one that is not known or contradicts
    itself, or whose tokenizer llama.cpp cannot reproduce.
    """
    check_levels(wanted)
    with opened(path, title_of(path, name), settings.prune_layers) as source:
        return make(source, wanted, out, settings=settings, prove=prove, report=report)


def make(
    source: Source,
    wanted: Sequence[str],
    out: Path,
    *,
    settings: Settings = DEFAULT,
    prove: bool = True,
    report: Report = silent,
) -> tuple[Made, ...]:
    """Write the source as `out/TITLE-LEVEL.gguf` for every level wanted, certificates beside.

    A file gets its name after its certificate is made; `prove=False` makes none, and the file says so. What is
    interrupted goes on at the tensor where it stopped. Raises RequestError for an unknown level or type, StoreError
    for what the disk refuses and for files that are there already, ConversionError for a source that cannot be
    encoded or whose file does not compute the same.
    """
    targets = [out / f"{source.title}-{level}.gguf" for level in wanted]
    check_free(targets)
    work = {
        "source": source.key,
        "levels": list(wanted),
        "settings": key_of(settings),
        "proof": prove,
        "tools": proof.tools(),  # another llama.cpp may encode otherwise
    }
    with drafts(out, source.title, work) as folder:
        files = tuple(file_of(source, level, folder.folder, settings, prove) for level in wanted)
        for file in files:  # before hours of work are lost to it
            check_importance(file.entries.values(), settings.importance)
        reserve(out, sum(file.head.size for file in files) - folder.written)
        seconds = stream(source, files, folder, settings, report)
        certificates = proofs(source, files, settings, report) if prove else {}
        check_free(targets)  # other programs write, too
        for file, target in zip(files, targets, strict=True):
            if prove:
                proof.write(certificates[file.level], target)
            name_it(file.draft, target)
    return tuple(
        Made(
            path=target,
            level=file.level,
            bytes=file.head.size,
            bits_per_weight=file.bits_per_weight,
            fell_back=file.fell_back,
            seconds=seconds[file.level],
            peak_rss_bytes=peak_rss_bytes(),
            certificate=certificates.get(file.level),
            notes=source.notes,
        )
        for file, target in zip(files, targets, strict=True)
    )


def check_free(targets: Sequence[Path]) -> None:
    """Raise StoreError where a file has one of these names."""
    for path in targets:
        if os.path.lexists(path):
            raise StoreError(f"{path} is there already", hint="remove it, or choose --name or --out")


def key_of(settings: Settings) -> dict[str, Any]:
    """What of the settings the bytes depend on."""
    same = replace(settings, threads=0, max_buffer=0, importance={})
    importance = {name: sha256(values.tobytes()).hexdigest() for name, values in settings.importance.items()}
    return {**asdict(same), "importance": importance}


def proofs(
    source: Source, files: Sequence[File], settings: Settings, report: Report
) -> dict[str, proof.Certificate]:
    """The certificate of every draft. Raises ConversionError where one does not compute what it should."""
    bent = bool(settings.tensor_types or settings.output_type or settings.embedding_type)
    report("proving", 0, len(files) + 1)
    reference = source.expect(files[0].draft)
    found = {}
    for done, file in enumerate(files, 1):
        report("proving", done, len(files) + 1)
        found[file.level] = proof.certify(file.draft, file.level, reference, exact=source.exact and not bent)
    report("proving", len(files) + 1, len(files) + 1)
    return found


def sizes(
    path: Path, wanted: Sequence[str], *, name: str | None = None, settings: Settings = DEFAULT
) -> tuple[Size, ...]:
    """What `convert` would write, without writing it. Raises as `convert` does before it writes."""
    check_levels(wanted)
    with opened(path, title_of(path, name), settings.prune_layers) as source, TemporaryDirectory() as folder:
        files = [file_of(source, level, Path(folder), settings, prove=True) for level in wanted]
        return tuple(
            Size(file.level, file.head.size, file.bits_per_weight, file.fell_back, file.needs_importance)
            for file in files
        )


def calibrate(
    path: Path,
    text: str,
    name: str,
    out: Path,
    *,
    settings: Settings = DEFAULT,
    report: Report = silent,
) -> Importance:
    """The importance matrix of a checkpoint or GGUF file, without the layers to leave out, over a text it calls `name`.

    A checkpoint is made into a file of all its precision first, in a folder below `out` that goes again. Raises as
    `convert` and `collect` do.
    """
    from .collect import collect

    def progress(done: int, total: int) -> None:
        report("calibrating", done, total)

    if not path.is_dir() and not settings.prune_layers:
        return collect(path, text, name=name, threads=settings.threads, progress=progress)
    out.mkdir(parents=True, exist_ok=True)
    with (
        opened(path, title_of(path), settings.prune_layers) as source,
        TemporaryDirectory(prefix=".edge-", dir=out) as folder,
    ):
        kinds = {entry.type for entry in source.entries if not entry.fixed}
        level = kinds.pop().lower() if len(kinds) == 1 else "f32"
        (whole,) = make(source, [level], Path(folder), prove=False)
        return collect(whole.path, text, name=name, threads=settings.threads, progress=progress)
