"""The folder of an ONNX model, made in a hidden one beside it that gets its name when all in it is proven."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from edge.errors import StoreError
from edge.onnx_folder import CERTIFICATE, CONFIG, DATA, GRAPH, TOKENIZER

from .. import drafts
from ..understood import Understood
from .tokenizer_json import Words


@contextmanager
def draft(target: Path) -> Iterator[Path]:
    """An empty hidden folder beside `target`, locked for this process, that goes with what it was made for.

    `name_it` gives it its name. Raises StoreError where the disk refuses or another process is at the same folder.
    """
    folder = target.with_name(f".{target.name}.converting")
    with disk_errors(target.parent):
        lock = drafts.claimed(folder)
    if lock is None:
        raise StoreError(
            f"{target.name} is being made by another process", hint="let it finish, or choose --name"
        )
    try:
        with disk_errors(target.parent):
            for stale in folder.iterdir():
                if stale.name != "lock":
                    stale.unlink()
        yield folder
    finally:
        drafts.clear(folder)
        os.close(lock)


def name_it(folder: Path, target: Path) -> None:
    """Give a draft its name, which is free; the lock in it goes."""
    with disk_errors(target.parent):
        folder.rename(target)
        with suppress(FileNotFoundError):
            (target / "lock").unlink()
        sync(target.parent)


def check_free(targets: Sequence[Path]) -> None:
    """Raise StoreError where one of the folders is there."""
    for path in targets:
        if os.path.lexists(path):
            raise StoreError(f"{path} is there already", hint="remove it, or choose --name or --out")


def describe(model: Understood, level: str, most: int, decoder: Mapping[str, Any]) -> dict[str, Any]:
    """config.json: the checkpoint's, without what names code, and what this folder is, as edge/onnx_folder.py says.

    `decoder` is what a decoder says of itself beside the level, empty for others.
    """
    config = model.config
    said = (
        {"level": level, **decoder}
        if decoder
        else {
            "level": level,
            "task": config.task,
            "labels": list(config.labels),
            "problem": config.problem,
            "pooling": config.pooling,
            "normalize": config.normalize,
            "max_tokens": most,
            "width": config.width,
        }
    )
    return {
        **{key: value for key, value in model.checkpoint.config.items() if key != "auto_map"},
        "edge": said,
    }


def write_texts(folder: Path, config: Mapping[str, Any], words: Words) -> None:
    """tokenizer.json and config.json."""
    put(folder / TOKENIZER, words.text)
    put(folder / CONFIG, json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def write_certificate(folder: Path, certificate: Mapping[str, Any]) -> None:
    put(folder / CERTIFICATE, json.dumps(certificate, indent=2, ensure_ascii=False) + "\n")


def put(path: Path, text: str) -> None:
    """Write a file and sync it."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync(folder: Path) -> None:
    """What is named in a folder stays named when the power fails."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_errors(folder: Path) -> AbstractContextManager[None]:
    """What the disk refuses, as a StoreError."""
    return drafts.disk_errors(folder, hint="free space, or choose another --out")


def weights_bytes(folder: Path) -> int:
    """The bytes of model.onnx and model.onnx.data."""
    return sum(path.stat().st_size for path in (folder / GRAPH, folder / DATA) if path.exists())
