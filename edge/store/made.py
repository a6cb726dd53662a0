"""Models that are made on this device, such as a trained head with its encoder: kept like pulled ones."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from edge.errors import RequestError
from edge.store import content, home, pulling, records
from edge.store.records import File, Model, Report

# writes the model's files into the folder it is given, and returns their paths
Write = Callable[[Path], Sequence[Path]]
CHECKED = "nothing: it is as it was when made"


def refuse_kept(name: str) -> None:
    """Raise RequestError where `name` is no model name or a model has it; for work that takes long, before it."""
    folder = home.folder_of(name)
    with home.disk_errors(folder.parent):
        if kept := records.read(folder):
            raise RequestError(
                f"{name} is kept already, from {kept.ref}",
                hint=f"choose another name with --as, or `edge rm {name}`",
            )
        if folder.is_dir() and any(folder.iterdir()):
            raise RequestError(
                f"{name} is what an interrupted pull left",
                hint=f"`edge rm {name}` clears it, or choose another --as",
            )


def keep_made(name: str, ref: str, licence: str, write: Write, report: Report | None = None) -> Model:
    """Keep what `write` puts into a new model's folder; of a failure nothing stays.

    `ref` says what it was made from. Raises RequestError where the name is taken, StoreError for what the disk refuses.
    """
    tell = report or (lambda step: None)
    with home.disk_errors(home.models_folder()), home.locked(name, tell) as folder:
        refuse_kept(name)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            files = [
                File(path, path.stat().st_size, content.digest(path, tell), ref, CHECKED)
                for path in write(folder)
            ]
            model = pulling.model_of(folder, files, licence, in_place=False)
            model = replace(model, name=name, ref=ref)
            records.write(folder, model)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return model
