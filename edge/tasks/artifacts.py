"""From a reference to the files an encoder may be run from: one, or the several forms of one model."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edge import gguf_header, onnx_folder, store
from edge.engine.encoder import task_of
from edge.errors import RequestError
from edge.gguf_header.tables import FILE_TYPES
from edge.onnx_folder import is_folder
from edge.store import in_place
from edge.store.checkpoints import ADAPTER_CONFIG, CONFIG
from edge.store.refs import Local, Name, parse
from edge.tasks import head

ONNX, GGUF = "onnx", "gguf"
ONNX_LEVELS = ("fp32", "fp16", "int8", "int8w", "int4")
GGUF_LEVELS = tuple(level.lower() for level in FILE_TYPES.values())
LATER_PART = re.compile(r".*-(?!00001)\d{5}-of-\d{5}\.gguf", re.IGNORECASE)
HEADED = "head"


@dataclass(frozen=True)
class Artifact:
    """One form of a model. `form` is onnx, gguf, or head for one that `edge train` made; `task` as About has it."""

    path: Path
    form: str
    level: str
    task: str

    @property
    def title(self) -> str:
        """How a choice between several is written: its file, which is called by its level or has it said."""
        level = "" if not self.level or self.level in self.path.name.lower() else f" {self.level}"
        return f"{self.path.name} ({self.form.upper()}{level})"


def located(ref: str) -> tuple[str, list[Path]]:
    """The model's name and where its forms are: of a path that is not there those that begin like it (NAME-LEVEL).

    Raises ModelNotFound, RequestError for what is no model or a checkpoint that is to be converted first.
    """
    target = parse(ref)
    local = isinstance(target, Local) or (
        isinstance(target, Name) and store.kept_as(ref) is None and ref not in store.catalogue()
    )
    if local:
        path = target.path if isinstance(target, Local) else Path(ref).absolute()
        if path.exists():
            return (path.parent if path.suffix == ".onnx" else path).name, list(within(path))
        if found := siblings(path):
            return path.name, found
    model = store.resolve(ref)
    return model.name, list(within(model.path, model.name if model.added else None))


def siblings(path: Path) -> list[Path]:
    """NAME-LEVEL folders and NAME-LEVEL.gguf files beside a path that ends in NAME."""
    if not path.parent.is_dir():
        return []
    return [
        other
        for other in sorted(path.parent.iterdir())
        if other.name.startswith(f"{path.name}-")
        and stem(other) == path.name
        and (is_folder(other) or other.suffix == ".gguf")
    ]


def stem(path: Path) -> str:
    """The name of a form without its level: what the forms of one model share."""
    name = path.stem if path.suffix == ".gguf" else path.name
    start, _, level = name.rpartition("-")
    return start if start and level.lower() in (*ONNX_LEVELS, *GGUF_LEVELS) else name


def within(path: Path, name: str | None = None) -> Iterator[Path]:
    """The forms in a file or folder, kept under a name or not. Raises RequestError where it is none and holds none."""
    if path.is_file() or is_folder(path) or head.is_headed(path):
        yield path
        return
    found = [other for other in sorted(path.iterdir()) if not other.name.startswith(".")]
    forms = [
        other
        for other in found
        if is_folder(other) or (other.suffix == ".gguf" and not LATER_PART.fullmatch(other.name))
    ]
    if forms:
        models = sorted({stem(form) for form in forms})
        if len(models) > 1:
            shown = ", ".join(str(path / model) for model in models[:8])
            raise RequestError(f"{path} holds {len(models)} models", hint=f"name one of {shown}")
        yield from forms
        return
    names, called = {other.name for other in found}, name or str(path)
    if CONFIG in names:
        beside = siblings(path)
        if not beside:
            in_place.local_files(path)  # says what is missing where it has no weights
        raise RequestError(
            f"{called} is a checkpoint",
            hint=f"name {beside[0]}"
            if beside
            else f"run `edge convert {shlex.quote(called)} --to onnx --level int8`",
        )
    if ADAPTER_CONFIG in names:
        raise RequestError(f"{called} is a LoRA adapter", hint="give a model")
    raise RequestError(f"{called} holds no model", hint="name an ONNX folder, or a GGUF file")


def artifact(path: Path) -> Artifact:
    """What a file or folder says it is, without loading it. Raises as the readers of headers and folders do."""
    if head.is_headed(path):
        return Artifact(path, HEADED, "", "classification")
    if path.suffix == ".gguf" and path.is_file():
        header = gguf_header.read(path)
        return Artifact(path, GGUF, header.quantization.lower(), task_of(header))
    if path.suffix == ".onnx" or path.is_dir():
        folder = onnx_folder.read(path)
        return Artifact(path, ONNX, folder.level, folder.task)
    raise RequestError(f"{path.name} is neither an ONNX model nor a GGUF file", hint="convert it first")


def task(ref: str) -> str:
    """What the model behind a reference does: embedding, classification, tokens, or generation. Nothing is loaded.

    Raises as `located` and `artifact`.
    """
    return artifact(located(ref)[1][0]).task
