"""LoRA adapters: GGUF files that are added to a model while it runs."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge import gguf_header
from edge.engine.binding import listen, why
from edge.errors import EngineError, ModelNotFound, RequestError, UnsafeFile
from edge.gguf_header import Header

SUFFIXES = (".lora_a", ".lora_b")
EMBEDDING = "token_embd.weight"
TYPES = {"F32", "F16", "BF16", "Q8_0"}
CONVERT = "make one with `edge convert ADAPTER_DIR --to gguf`"

ANOTHER = "use it with the model it was made for"


@dataclass(frozen=True)
class Adapter:
    """A file whose change of the weights is multiplied by `scale`; `bytes` is its size."""

    path: Path
    scale: float
    bytes: int


def adapter_of(text: str) -> Adapter:
    """The adapter that FILE or FILE:SCALE names, its header checked; a scale is 1 unless given.

    llama.cpp trusts an adapter's types and aborts the process where they are wrong, so they are checked here.
    Raises RequestError for a scale that is no number, ModelNotFound where there is no such file, UnsafeFile (BadGGUF)
    for a file that is damaged or no adapter.
    """
    path, scale = Path(text), 1.0
    name, colon, tail = text.rpartition(":")
    if colon and not path.is_file():
        try:
            path, scale = Path(name), float(tail)
        except ValueError:
            raise RequestError(
                f"{tail[:40]!r} is no scale", hint="write --lora FILE or --lora FILE:0.5"
            ) from None
    if not math.isfinite(ctypes.c_float(scale).value):  # llama.cpp keeps it as one
        raise RequestError(
            f"the scale of {path.name} is {scale}", hint="write --lora FILE or --lora FILE:0.5"
        )
    if not path.is_file():
        raise ModelNotFound(f"there is no adapter {path}", hint=CONVERT)
    header = gguf_header.read(path)
    check(path, header)
    return Adapter(path, scale, header.file_bytes)


def check(path: Path, header: Header) -> None:
    """Raise UnsafeFile for a file that is no LoRA adapter, or one that llama.cpp would end the process over."""
    kind, method = header.get("general.type", str, "model"), header.get("adapter.type", str, "none")
    if (kind, method) != ("adapter", "lora"):
        raise UnsafeFile(f"{path.name} is no LoRA adapter but a {kind}", hint=CONVERT)
    if "adapter.alora.invocation_tokens" in header.metadata:
        raise UnsafeFile(
            f"{path.name} is to begin at certain tokens (aLoRA)", hint="take a LoRA without that"
        )
    header.get("adapter.lora.alpha", float, 0.0)
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    for tensor in header.tensors:
        if tensor.name[-7:] not in SUFFIXES or len(tensor.shape) != 2 or tensor.type not in TYPES:
            raise UnsafeFile(
                f"{path.name}: {tensor.name}, {tensor.type} {tensor.shape}, is no part of a LoRA",
                hint=CONVERT,
            )
        a, b = (shapes.get(tensor.name[:-7] + suffix) for suffix in SUFFIXES)
        if a is None or b is None:
            raise UnsafeFile(f"{path.name} has {tensor.name} without its other half", hint=CONVERT)
        # An embedding's A is looked up by rows, so it lies the other way round.
        if b[0] != a[0 if tensor.name.startswith(EMBEDDING) else 1]:
            raise UnsafeFile(f"{path.name}: the two parts of {tensor.name[:-7]} differ in rank", hint=CONVERT)
    if not shapes:
        raise UnsafeFile(f"{path.name} holds no tensors", hint=CONVERT)


def check_base(model: Path, adapter: Adapter) -> None:
    """Raise RequestError for an adapter of another model, or of a part of it that llama.cpp cannot adapt."""
    base, header = gguf_header.read(model), gguf_header.read(adapter.path)
    name = adapter.path.name
    if header.architecture != base.architecture:
        raise RequestError(
            f"{name} adapts a {header.architecture} and {model.name} is a {base.architecture}", hint=ANOTHER
        )
    shapes = {tensor.name: tensor.shape for tensor in base.tensors}
    for target in sorted({tensor.name[:-7] for tensor in header.tensors}):
        # A split model's other tensors are in its other files; llama.cpp looks there itself.
        if target not in shapes and base.split_count == 1:
            raise RequestError(f"{name} adapts {target}, which {model.name} has not", hint=ANOTHER)
        if len(shapes.get(target, (0, 0))) != 2 or "_exps." in target:
            raise RequestError(f"{name} adapts {target}, which is no plain matrix", hint=ANOTHER)
        if target == EMBEDDING and "output.weight" not in shapes:
            raise RequestError(
                f"{name} adapts the embedding of {model.name}, which is its output, too",
                hint="llama.cpp would apply it to both and fail",
            )


def load_adapters(lib: Any, model: Any, adapters: Sequence[Adapter]) -> list[Any]:
    """llama.cpp's handles, which are freed with the model. Before a context is opened: it makes room for them.

    Raises EngineError where llama.cpp refuses one.
    """
    handles = []
    for adapter in adapters:
        listen()
        handle = lib.llama_adapter_lora_init(model, os.fsencode(adapter.path))
        if not handle:
            raise EngineError(
                f"llama.cpp cannot apply {adapter.path.name}: {why('it gives no reason')}", hint=ANOTHER
            )
        handles.append(handle)
    return handles


def apply(lib: Any, context: Any, handles: Sequence[Any], adapters: Sequence[Adapter]) -> None:
    """Every decoding of the context has them from here on."""
    scales = (ctypes.c_float * len(adapters))(*(adapter.scale for adapter in adapters))
    pointers = (lib.llama_adapter_lora_p_ctypes * len(handles))(*handles)
    lib.llama_set_adapters_lora(context, pointers, len(handles), scales)
