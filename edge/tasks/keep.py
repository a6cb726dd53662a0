"""A trained head and a copy of its encoder, kept in the store as one model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from edge import onnx_folder, store
from edge.onnx.check import check
from edge.store import content, home, made
from edge.store.records import Model
from edge.store.refs import TRAINED
from edge.tasks import head
from edge.tasks.encoder import About

# Beside an ONNX graph and its data, what `onnx_folder` reads
TEXTS = (
    onnx_folder.CONFIG, onnx_folder.TOKENIZER, onnx_folder.CERTIFICATE, "tokenizer_config.json",
    "sentence_bert_config.json", "modules.json", "1_Pooling/config.json",
)  # fmt: skip


def keep(name: str, about: About, trained: head.LinearHead, licence: str) -> Model:
    """Keep a head and a copy of the encoder it was trained on as the model `name`, under the encoder's licence.

    Raises RequestError where the name is taken, StoreError for what the disk refuses.
    """

    def write(folder: Path) -> list[Path]:
        copies = list(copied(about.path, folder / head.ENCODER))
        hashes = {path.relative_to(folder).as_posix(): content.digest(path, quiet) for path in copies}
        facts = {**trained.facts, "encoder": {**trained.facts["encoder"], "sha256": hashes}}
        return [*head.write(folder, replace(trained, facts=facts)), *copies]

    return made.keep_made(name, TRAINED + about.name, licence, write)


def quiet(step: store.Progress) -> None:
    """A report to nobody."""


def copied(encoder: Path, folder: Path) -> Iterator[Path]:
    """Copy an encoder's files into `folder`: what an ONNX folder is read from, or a GGUF file with its parts.

    Copies, not hard links: data of a second name is refused (edge.onnx.check).
    """
    files = files_of(encoder)
    home.room_for(folder.parent, sum(file.stat().st_size for file in files.values()))
    for name, file in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
        with target.open("rb") as written:
            os.fsync(written.fileno())
        yield target


def files_of(encoder: Path) -> dict[str, Path]:
    """An encoder's files by their names in the copy."""
    if encoder.suffix == ".gguf":
        return {file.name: file for file in store.resolve(str(encoder)).files}
    graph = onnx_folder.graph_of(encoder)
    texts = {name: onnx_folder.beside(graph, name) for name in TEXTS}
    weights = {file.name: file for file in (graph, *check(graph).data)}
    return {**{name: file for name, file in texts.items() if file.is_file()}, **weights}
