"""What the store says of a model, and the `model.json` that keeps it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from edge.errors import StoreError

RECORD = "model.json"


@dataclass(frozen=True)
class File:
    """What is known of a file. `sha256` is of the bytes kept; `checked` says what they were held against."""

    path: Path
    bytes: int
    sha256: str
    source: str
    checked: str


@dataclass(frozen=True)
class Model:
    """A model on this disk.

    `path` is its only or first file, or its folder when it is a checkpoint. `sha256` is that of the file, or
    of the list of hashes when there are several; it is empty for a path that was never pulled. `added` is an
    ISO time in UTC. `files` are all of its files, the parts of a split one in order; `evidence` is what is
    known of each. `in_place` means that they belong to somebody else and are never deleted. `advice` says how
    to run it best: settings by the names of `edge.Sampling`, and `system`, a system prompt.
    """

    name: str
    path: Path
    ref: str
    sha256: str
    bytes: int
    licence: str
    added: str
    files: tuple[Path, ...]
    in_place: bool
    evidence: tuple[File, ...] = ()
    advice: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """What `verify` found: `problems` is empty when every byte is as it was."""

    name: str
    bytes: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.problems


@dataclass(frozen=True)
class Progress:
    """Where a pull stands. `doing` is fetch, check or wait (another process pulls the same model)."""

    doing: str
    file: str
    done: int
    total: int | None


Report = Callable[[Progress], None]


def one_line(stated: str) -> str:
    """What a publisher states, such as a licence, short and without what would steer a terminal."""
    return "".join(filter(str.isprintable, stated))[:80]


def write(folder: Path, model: Model) -> None:
    """Keep `model` in `folder`, atomically. Paths of the store's own files are written relative to it."""
    kept = relocated(model, lambda path: path if model.in_place else path.relative_to(folder))
    fields = {key: value for key, value in asdict(kept).items() if key != "files"}  # evidence has the paths
    text = json.dumps(fields, indent=2, ensure_ascii=False, default=str) + "\n"
    draft = folder / (RECORD + ".partial")
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    name_it(draft, folder / RECORD)


def read(folder: Path) -> Model | None:
    """The model kept in `folder`, or None. Raises StoreError for a record that makes no sense."""
    try:
        fields: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        evidence = tuple(File(**{**file, "path": Path(file["path"])}) for file in fields["evidence"])
        files = tuple(file.path for file in evidence)
        fields["name"] = folder.name  # it may have been renamed by hand
        model = Model(**{**fields, "path": Path(fields["path"]), "files": files, "evidence": evidence})
        home = folder.resolve()
        inside = ((home / path).resolve().is_relative_to(home) for path in (model.path, *files))
        if not model.in_place and not all(inside):
            raise ValueError("a path leaves the store")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(
            f"{folder / RECORD} is damaged ({error})", hint=f"run `edge rm {folder.name}` and pull it again"
        ) from None
    return model if model.in_place else relocated(model, lambda path: folder / path)


def relocated(model: Model, move: Callable[[Path], Path]) -> Model:
    evidence = tuple(replace(file, path=move(file.path)) for file in model.evidence)
    return replace(model, path=move(model.path), files=tuple(map(move, model.files)), evidence=evidence)


def name_it(draft: Path, final: Path) -> None:
    """Give a finished file its real name, so that it survives a power cut."""
    draft.replace(final)
    folder = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
