"""A checkpoint in, GGUF files out: one read of the source for all levels, each file proven before it has its name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, BinaryIO

from edge.errors import ConversionError, RequestError, StoreError
from edge.machine.peak import peak_rss_bytes
from edge.store.records import name_it

from . import proof
from .collect import collect
from .drafts import Drafts, drafts, reserve
from .gguf import Entry, Head, head
from .imatrix import Importance
from .quantize import FLOATS, Mixture, Settings, encode, float_types, levels, mixture
from .source import Source, opened, title_of

DEFAULT = Settings()
QUANTIZATION_VERSION = 2  # ggml.h, GGML_QNT_VERSION
# what is done, how much of it, of how much
Report = Callable[[str, int, int], None]


def silent(doing: str, done: int, total: int) -> None:
    """Report to nobody."""


@dataclass(frozen=True)
class File:
    """One file to write: where it grows, its head, and the type of each tensor."""

    draft: Path
    level: str
    entries: Mapping[str, Entry]
    fell_back: tuple[str, ...]
    needs_importance: bool
    head: Head

    @property
    def bits_per_weight(self) -> float:
        weights = sum(entry.elements for entry in self.entries.values())
        return 8 * sum(entry.bytes for entry in self.entries.values()) / weights


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
    with opened(path, name or title_of(path), settings.prune_layers) as source:
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
    for level in wanted:
        if os.path.lexists(path := out / f"{source.title}-{level}.gguf"):
            raise StoreError(f"{path} is there already", hint="remove it, or choose --name or --out")
    work = {"source": source.key, "levels": list(wanted), "settings": key_of(settings), "proof": prove}
    with drafts(out, source.title, work) as folder:
        files = tuple(file_of(source, level, folder.folder, settings, prove) for level in wanted)
        reserve(out, sum(file.head.size for file in files))
        seconds = stream(source, files, folder, settings, report)
        certificates = proofs(source, files, settings, report) if prove else {}
        for file in files:
            if prove:
                proof.write(certificates[file.level], out / file.draft.name)
            name_it(file.draft, out / file.draft.name)
    return tuple(
        Made(
            path=out / file.draft.name,
            level=file.level,
            bytes=file.head.size,
            bits_per_weight=file.bits_per_weight,
            fell_back=file.fell_back,
            seconds=seconds[file.level],
            peak_rss_bytes=peak_rss_bytes(),
            certificate=certificates.get(file.level),
            notes=source.notes,
        )
        for file in files
    )


def check_levels(wanted: Sequence[str]) -> None:
    """Raise RequestError for a level that this llama.cpp does not have, or that is named twice."""
    for level in wanted:
        if level not in levels():
            raise RequestError(f"{level!r} is not a level", hint=f"there are {', '.join(levels())}")
        if wanted.count(level) > 1:
            raise RequestError(f"level {level} is named twice")
    if not wanted:
        raise RequestError("no level is named", hint="for example --level q8_0")


def key_of(settings: Settings) -> dict[str, Any]:
    """What of the settings the bytes depend on."""
    same = replace(settings, threads=0, max_buffer=0, importance={})
    importance = {name: sha256(values.tobytes()).hexdigest() for name, values in settings.importance.items()}
    return {**asdict(same), "importance": importance}


def file_of(source: Source, level: str, scratch: Path, settings: Settings, prove: bool) -> File:
    """Types and head of one level."""
    small = [Entry(name, values.shape, "F32", fixed=True) for name, values in source.extra.items()]
    entries = [*source.entries, *small]
    if level in FLOATS:
        chosen = float_types(level, source.entries)
    else:
        blank = scratch / "blank.gguf"
        chosen = dry_run(blank, source.fields, entries, level, settings)
    fields = source.fields | {
        "general.file_type": levels()[level],
        "general.quantization_version": QUANTIZATION_VERSION,
        "edge.proof": "certificate" if prove else "none",
    }
    if level not in FLOATS:
        fields |= settings.importance_fields
    typed = [*(replace(entry, type=chosen.types[entry.name]) for entry in source.entries), *small]
    draft = scratch / f"{source.title}-{level}.gguf"
    return File(
        draft,
        level,
        {entry.name: entry for entry in typed},
        chosen.fell_back,
        chosen.needs_importance,
        head(fields, typed),
    )


def dry_run(
    blank: Path, fields: Mapping[str, Any], entries: Sequence[Entry], level: str, settings: Settings
) -> Mixture:
    """Ask llama.cpp's quantizer, with a file that has the head of the whole model and holes for its weights."""
    whole = head({key: value for key, value in fields.items() if not key.startswith("tokenizer.")}, entries)
    blank.write_bytes(whole.data)
    try:
        os.truncate(blank, whole.size)
        return mixture(blank, level, entries, settings)
    finally:
        blank.unlink()


def stream(
    source: Source, files: Sequence[File], folder: Drafts, settings: Settings, report: Report
) -> dict[str, float]:
    """Every tensor of the source once, into all drafts; the seconds that each took."""
    seconds = dict.fromkeys((file.level for file in files), 0.0)
    total = sum(entry.bytes for entry in source.entries)
    done = 0
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(settings.workers))
        drafts = [stack.enter_context(draft_file(file.draft, file.head)) for file in files]
        for name, values in source.extra.items():
            for file, draft in zip(files, drafts, strict=True):
                put(draft, values.tobytes(), file.head.places[name])
        for entry in source.entries:
            if f"tensor {entry.name}" not in folder.done:
                for file, taken in copied(source, entry, files, drafts, pool, settings):
                    seconds[file.level] += taken
                folder.finish(f"tensor {entry.name}")
            done += entry.bytes
            report("converting", done, total)
        for draft in drafts:
            os.fsync(draft.fileno())
    return seconds


def copied(
    source: Source,
    entry: Entry,
    files: Sequence[File],
    drafts: Sequence[BinaryIO],
    pool: Executor,
    settings: Settings,
) -> Iterator[tuple[File, float]]:
    """One tensor into every draft, a few rows at a time; yields (file, seconds) of each piece."""
    as_is = all(file.entries[entry.name].type == entry.type for file in files)
    importance = settings.importance.get(entry.name)
    if importance is not None and importance.size != entry.shape[-1]:
        raise ConversionError(
            f"the importance matrix has {importance.size} columns for {entry.name}, which has {entry.shape[-1]}",
            hint="it is of another model",
        )
    row = 0
    for rows in source.chunks(entry.name, settings.max_buffer, as_is):
        for file, draft in zip(files, drafts, strict=True):
            started = perf_counter()
            target = file.entries[entry.name]
            try:
                plain = as_is or target.type == "F32"
                data = rows if plain else encode(rows, target.type, importance, pool, settings.workers)
            except ConversionError as error:
                raise ConversionError(f"{entry.name}: {error}", hint=error.hint) from None
            put(
                draft, data.reshape(-1).view("u1").data, file.head.places[entry.name] + row * target.row_bytes
            )
            yield file, perf_counter() - started
        row += len(rows)


def draft_file(path: Path, start: Head) -> BinaryIO:
    """A draft of its full length with its head, tensors of an earlier run in it."""
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+b", buffering=0)
    os.ftruncate(file.fileno(), start.size)
    put(file, start.data, 0)
    return file


def put(file: BinaryIO, data: bytes | memoryview, place: int) -> None:
    """All of `data` at a place: one call writes at most 2 GiB."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(file.fileno(), rest, place)
        rest, place = rest[written:], place + written


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


def sizes(path: Path, wanted: Sequence[str], *, settings: Settings = DEFAULT) -> tuple[Size, ...]:
    """What `convert` would write, without writing it. Raises as `convert` does before it writes."""
    check_levels(wanted)
    with opened(path, title_of(path), settings.prune_layers) as source, TemporaryDirectory() as folder:
        files = [file_of(source, level, Path(folder), settings, prove=True) for level in wanted]
        return tuple(
            Size(file.level, file.head.size, file.bits_per_weight, file.fell_back, file.needs_importance)
            for file in files
        )


def calibrate(path: Path, text: str, name: str, out: Path, *, report: Report = silent) -> Importance:
    """The importance matrix of a checkpoint or GGUF file over a text that it calls `name`.

    A checkpoint is made into a file of all its precision first, in a folder below `out` that goes again. Raises as
    `convert` and `collect` do.
    """

    def progress(done: int, total: int) -> None:
        report("calibrating", done, total)

    if not path.is_dir():
        return collect(path, text, name=name, progress=progress)
    out.mkdir(parents=True, exist_ok=True)
    with opened(path, title_of(path)) as source, TemporaryDirectory(prefix=".edge-", dir=out) as folder:
        kinds = {entry.type for entry in source.entries if not entry.fixed}
        level = kinds.pop().lower() if len(kinds) == 1 else "f32"
        (whole,) = make(source, [level], Path(folder), prove=False)
        return collect(whole.path, text, name=name, progress=progress)
