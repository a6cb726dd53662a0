"""What a kept state is of: the model by its content, and every setting that changes the state or its form."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, field
from pathlib import Path

from edge import gguf_header, onnx_folder
from edge.artifact import ONNX_BACKEND
from edge.engine.adapters import Adapter
from edge.errors import StoreError
from edge.home import states_folder
from edge.machine.installed import installed
from edge.planner import Plan

FORM = 1  # of our files
PIECE = 1 << 20
MOST_REMEMBERED = 256


def library(backend: str = "") -> str:
    """Which llama.cpp or ONNX Runtime it is: what it writes, only the same version is sure to read."""
    if backend == ONNX_BACKEND:
        return f"onnxruntime {installed().onnxruntime}"
    return f"llama-cpp-python {installed().llama_cpp}"


@dataclass(frozen=True)
class StateKey:
    """Two engines with equal keys can take over each other's states.

    name          what the user calls the model; no part of the key
    model         its `model_digest`
    backend       what computes: "llama.cpp-cpu"
    kv, flash     the type of the KV cache, and whether flash attention is on, as the plan has them
    streams       sequences with cells of their own (1 where they share them): it stands in llama.cpp's states
    adapters      (`model_digest`, scale) of each LoRA adapter
    context       tokens, for a model whose rotations depend on it (`{arch}.rope.scaling.original_context_length`);
                  0 for all others
    library       see there

    Threads, and how rows were batched, change no more than the last bits, so they are no part of it.
    """

    name: str = field(compare=False)
    model: str
    backend: str
    kv: str
    flash: bool | None
    streams: int
    adapters: tuple[tuple[str, float], ...] = ()
    context: int = 0
    library: str = field(default_factory=library)

    @property
    def digest(self) -> bytes:
        """32 bytes."""
        return hashlib.sha256(repr((FORM, *astuple(self)[1:])).encode()).digest()


def state_key(plan: Plan, adapters: Sequence[Adapter] = ()) -> StateKey:
    """The key of an engine that runs as `plan` says, with `adapters` added. Raises OSError, UnsafeFile."""
    stretched = 0
    if plan.backend != ONNX_BACKEND:
        header = gguf_header.read(plan.path)
        stretched = header.get("{arch}.rope.scaling.original_context_length", int, 0)
    return StateKey(
        plan.artifact,
        model_digest(plan.path),
        f"{plan.backend}, {plan.gpu_layers} layers of it on a GPU",
        plan.kv,
        plan.flash,
        1 if plan.unified else plan.sequences,
        tuple((model_digest(adapter.path), adapter.scale) for adapter in adapters),
        plan.context if stretched else 0,
        library(plan.backend),
    )


def model_digest(path: Path) -> str:
    """The sha256 of a file; of several, a split one or an ONNX folder's, that of their hashes.

    Of a file that the store keeps it is the store's own, else the file is read once and the hash remembered until the
    file changes. Raises OSError, UnsafeFile where a part is missing.
    """
    from edge.store.in_place import local_files

    # One graph of a folder that may have several
    parts = [path, *onnx_folder.data_files(path)] if path.suffix == ".onnx" else local_files(path)
    hashes = [kept_hash(part) or remembered_hash(part) for part in parts]
    if len(hashes) == 1:
        return hashes[0]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def kept_hash(path: Path) -> str:
    """What the store recorded of its own file, unless the file is younger than the record; else empty."""
    from edge.store import home, records

    try:
        inside = path.absolute().relative_to(home.models_folder())
        folder = home.models_folder() / inside.parts[0]
        model = records.read(folder)
        if model is None or model.in_place:
            return ""
        found = path.stat()
        if found.st_mtime_ns > (folder / records.RECORD).stat().st_mtime_ns:
            return ""
    except (ValueError, IndexError, StoreError, OSError):
        return ""
    known = {file.path: file.sha256 for file in model.evidence if file.bytes == found.st_size}
    return known.get(path.absolute(), "")


def remembered_hash(path: Path) -> str:
    """The sha256 of a file, read again only where its length, time or inode have changed. Raises OSError."""
    memory = states_folder().parent / "digests.json"
    path, before = path.resolve(), marks(path)
    known = read_memory(memory)
    if (kept := known.get(str(path))) and kept[:-1] == before:
        return str(kept[-1])
    running = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            running.update(piece)
    if marks(path) == before:
        known = {**read_memory(memory), str(path): [*before, running.hexdigest()]}
        with suppress(OSError):  # then it is hashed again
            remember(memory, dict([*known.items()][-MOST_REMEMBERED:]))
    return running.hexdigest()


def marks(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ino]


def read_memory(memory: Path) -> dict[str, Sequence[int | str]]:
    """File → length, time (ns), inode, hash; empty where nothing can be read."""
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
        return {path: kept for path, kept in known.items() if len(kept) == 4 and len(kept[3]) == 64}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def remember(memory: Path, known: dict[str, Sequence[int | str]]) -> None:
    memory.parent.mkdir(parents=True, exist_ok=True)
    draft = memory.with_name(f".{memory.name}.{os.getpid()}.partial")
    draft.write_text(json.dumps(known), encoding="utf-8")
    draft.replace(memory)
