"""A GGUF file back to a Hugging Face checkpoint: config.json, tokenizer.json, model.safetensors."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge import gguf_header
from edge.errors import ConversionError, RequestError, StoreError
from edge.gguf_header import Header
from edge.store.checkpoints import CONFIG, WEIGHTS
from edge.store.records import name_it

from . import gguf_source
from .families import family_of, family_of_gguf
from .families.weight import Weight
from .gguf_source import FLOATS, GGUFSource
from .safetensors import DTYPES, Writer, writing
from .tokenizer.restore import check, restore
from .tokenizer.trial import model

Array = NDArray[Any]
Float32 = NDArray[np.float32]

LEVELS = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
TORCH = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
MAX_BUFFER = 8 << 20  # bytes of float32 in memory at once; more is not faster


@dataclass(frozen=True)
class Written:
    """A checkpoint that was written: its files' names, their bytes together, the dtype of its weights, notes."""

    folder: Path
    files: tuple[str, ...]
    bytes: int
    dtype: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Tensor:
    """What is to be written: `pieces()` are its float32 values in order, in whole rows."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    pieces: Callable[[], Iterator[Float32]]


def to_safetensors(
    file: Path, folder: Path, *, level: str | None = None, max_buffer: int = MAX_BUFFER
) -> Written:
    """Write the model in the GGUF `file` as a checkpoint in `folder`, which appears when it is whole.

    level is the weights' dtype: f32, f16 or bf16; the file's own where None, f16 for a quantized one, whose weights
    are dequantized (a note says so). What the file keeps in F32 beside that, norms and biases for llama.cpp's sake,
    becomes the same dtype where that holds every value of it exactly, and stays F32 where not. So a checkpoint in
    f32, f16 or bf16 that was converted to its own level comes back bit for bit, norms included; but for Gemma's norms
    in f32, whose file holds 1 + w, and rows that the file leaves out (positions RoBERTa never reaches), which are 0.

    Memory is `max_buffer` a few times, or the largest tensor that a family changes as a whole. Raises BadGGUF and
    UnsafeFile for a damaged file, RequestError for another level, ConversionError for a model that is not known,
    contradicts itself, has values beyond the dtype, or whose tokenizer cannot be rebuilt, StoreError for a folder
    that is there and for what the disk refuses.
    """
    if level is not None and level not in LEVELS:
        raise RequestError(f"{level!r} is no level of a checkpoint", hint=f"there are {', '.join(LEVELS)}")
    if folder.exists() or folder.is_symlink():
        raise StoreError(f"{folder} is there already", hint="choose another name or move it away")
    with gguf_source.open(file) as source:
        config = family_of_gguf(source.header.architecture).config_json(source.header, source.float32)
        family = family_of(config)  # several may share GGUF's architecture
        understood = family.read_config(config)
        table = matched(source, family.weights(understood), family.extra_tensors(understood))
        own = own_dtype(source, table)
        dtype = LEVELS[level] if level else own
        tensors = [
            *(tensor_of(source, weight, dtype, own, max_buffer) for weight in table),
            *(head_tensor(file, weight, dtype) for weight in head_weights(family, understood)),
        ]
        with draft_of(folder) as draft:
            rows = understood.vocabulary
            notes = [
                *write_texts(source, config, TORCH[dtype], rows, draft),
                *notes_of(source, tensors, dtype),
            ]
            write_weights([named(tensor, config) for tensor in tensors], draft / WEIGHTS)
            files = tuple(sorted(path.name for path in draft.iterdir()))
            size = sum((draft / name).stat().st_size for name in files)
            with writing(folder):
                name_it(draft, folder)
    return Written(folder, files, size, dtype, tuple(notes))


@contextmanager
def draft_of(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder`, of its name, that is gone afterwards unless it was renamed."""
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.mkdtemp(prefix=".edge-", dir=folder.parent)
    try:
        draft = Path(scratch) / folder.name
        with writing(folder):
            draft.mkdir()
        yield draft
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def matched(source: GGUFSource, table: Sequence[Weight], extra: Mapping[str, Array]) -> tuple[Weight, ...]:
    """The rows of the table that the file has. Raises ConversionError for other tensors or other shapes."""
    found = []
    for weight in table:
        if weight.target not in source.shapes:
            if weight.required:
                raise ConversionError(
                    f"{source.path.name} has no tensor {weight.target}", hint="its metadata says it should"
                )
            continue
        shape = source.shapes[weight.target]
        if shape != weight.target_shape:
            raise ConversionError(
                f"{weight.target} is {shape} and the metadata makes it {weight.target_shape}",
                hint="the file contradicts itself",
            )
        found.append(weight)
    known = {weight.target for weight in found} | set(extra)
    unknown = [name for name in source.shapes if name not in known]
    if unknown:
        raise ConversionError(
            f"{source.path.name} has {len(unknown)} tensors that this family does not know, {unknown[0]} among them",
            hint="it may be a variant that is not known here",
        )
    return tuple(found)


def own_dtype(source: GGUFSource, table: Sequence[Weight]) -> str:
    """The dtype that the file's matrices have: BF16 or F32 where all do, F16 otherwise and where quantized.

    What a file of f16 or bf16 keeps in F32 for llama.cpp's sake does not count, unless nothing else is there.
    """
    kinds = {source.types[weight.target] for weight in table if len(weight.target_shape) > 1}
    if kinds <= {"F32", "F64"} or {"F16", "BF16"} <= kinds:
        return "F32"
    return "BF16" if kinds <= {"BF16", "F32"} else "F16"


def tensor_of(source: GGUFSource, weight: Weight, dtype: str, own: str, max_buffer: int) -> Tensor:
    """A tensor of the file in the checkpoint's layout; F32 where the file keeps it so and `dtype` is not exact."""
    layout, name, vector = weight.layout, weight.target, len(weight.target_shape) == 1

    def pieces() -> Iterator[Float32]:
        for piece in source.chunks(name, max_buffer, rows=layout.rows if layout else 1):
            if vector:
                piece = piece.reshape(-1)
            yield layout.to_checkpoint(piece) if layout else piece

    beside = source.types[name] == "F32" and (own != "F32" or vector)
    return Tensor(weight.source, weight.shape, exact_dtype(pieces(), dtype) if beside else dtype, pieces)


def head_weights(family: Any, config: Any) -> tuple[Weight, ...]:
    """The tensors that the family keeps in the metadata, for heads that llama.cpp does not compute."""
    found: tuple[Weight, ...] = family.head_weights(config) if hasattr(family, "head_weights") else ()
    return found


def head_tensor(file: Path, weight: Weight, dtype: str) -> Tensor:
    """One of them. Raises ConversionError where the array is not of its shape or not finite."""
    values = np.array(gguf_header.elements(file, weight.target), np.float32)
    if values.size != math.prod(weight.shape) or not np.isfinite(values).all():
        raise ConversionError(f"{weight.target} does not hold {weight.shape} finite values")
    return Tensor(weight.source, weight.shape, exact_dtype([values], dtype), lambda: iter([values]))


def exact_dtype(pieces: Iterable[Float32], dtype: str) -> str:
    """`dtype` where it holds every value, else F32."""
    if dtype == "F32" or all(
        np.array_equal(widened(narrowed(piece, dtype), dtype), piece) for piece in pieces
    ):
        return dtype
    return "F32"


def named(tensor: Tensor, config: Mapping[str, Any]) -> Tensor:
    """The tensor as transformers saves it: a model within a classifier has its own name before its tensors'."""
    if not config["architectures"][0].endswith("Classification") or "classifier" in tensor.name:
        return tensor
    model = {"xlm-roberta": "roberta"}.get(config["model_type"], config["model_type"])
    return replace(tensor, name=f"{model}.{tensor.name}")


def write_weights(tensors: Sequence[Tensor], path: Path) -> None:
    """model.safetensors in the order that the safetensors package writes: widest dtype first, then by name."""
    ordered = sorted(tensors, key=lambda tensor: (-DTYPES[tensor.dtype].itemsize, tensor.name))
    listed = [(tensor.name, tensor.dtype, tensor.shape) for tensor in ordered]
    with Writer(path, listed, {"format": "pt"}) as writer:
        for tensor in ordered:
            for piece in tensor.pieces():
                small = narrowed(piece, tensor.dtype)
                if tensor.dtype == "F16" and np.isinf(small).any():
                    raise ConversionError(
                        f"{tensor.name} has values beyond f16's 65504", hint="choose bf16 or f32 as the level"
                    )
                writer.write(tensor.name, small)


def narrowed(values: Float32, dtype: str) -> Array:
    """The nearest values of a dtype (ties to even); BF16 as uint16, and F16 infinite beyond its range."""
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16)
    if dtype == "BF16":
        bits = np.ascontiguousarray(values).view(np.uint32)
        return ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype(np.uint16)
    return values


def widened(values: Array, dtype: str) -> Float32:
    return (values.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else values.astype(np.float32)


def write_texts(
    source: GGUFSource, config: Mapping[str, Any], dtype: str, rows: int, draft: Path
) -> list[str]:
    """config.json, the tokenizer's files and generation_config.json; returns what the tokenizer's check notes."""
    with model(source.path) as vocab:
        words = restore(source.path, source.header, vocab)
        special = special_ids(source.header)
        put(draft / CONFIG, {**config, **special, "torch_dtype": dtype})
        put(draft / "tokenizer.json", words.tokenizer, indent=None)  # indented, json takes seconds for it
        put(draft / "tokenizer_config.json", words.settings)
        if config["architectures"][0].endswith(("ForCausalLM", "LMHeadModel")):
            put(draft / "generation_config.json", {**special, "eos_token_id": ends(source.header, special)})
        pre = source.header.get("tokenizer.ggml.pre", str, "default")
        return list(check(draft, {**config, **special}, rows, pre, vocab))


def special_ids(header: Header) -> dict[str, int]:
    """The ids that config.json names, as far as the header does."""
    keys = {"bos": "bos", "eos": "eos", "pad": "padding"}
    named = {
        f"{which}_token_id": header.get(f"tokenizer.ggml.{key}_token_id", int, -1)
        for which, key in keys.items()
    }
    return {which: index for which, index in named.items() if index >= 0}


def ends(header: Header, special: Mapping[str, int]) -> int | list[int] | None:
    """The ids that end an answer: the text's end, the turn's and the message's."""
    turns = [header.get(f"tokenizer.ggml.{key}_token_id", int, -1) for key in ("eot", "eom")]
    found = dict.fromkeys(index for index in (special.get("eos_token_id", -1), *turns) if index >= 0)
    return list(found) if len(found) > 1 else next(iter(found), None)


def put(path: Path, value: Mapping[str, Any], indent: int | None = 2) -> None:
    """A JSON file, on the disk when this returns."""
    text = json.dumps(value, indent=indent, ensure_ascii=False) + "\n"
    with writing(path), path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def notes_of(source: GGUFSource, tensors: Sequence[Tensor], dtype: str) -> list[str]:
    """What a user should know of the weights."""
    notes = []
    quantized = Counter(kind for kind in source.types.values() if kind not in FLOATS)
    if quantized:
        kinds = ", ".join(f"{count} {kind}" for kind, count in quantized.most_common())
        rounded = "" if dtype == "F32" else f", and their values are rounded to {dtype}"
        notes.append(f"dequantized tensors: {kinds}; what quantizing lost stays lost{rounded}")
    kept = sum(tensor.dtype != dtype for tensor in tensors)
    if kept:
        notes.append(f"{kept} tensors stay F32: {dtype} does not hold their values")
    return notes
