"""What a conversion reads: a checkpoint that was understood, or a GGUF file, in GGUF's names and layouts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edge import gguf_header
from edge.errors import ConversionError, RequestError
from edge.store.content import digest

from . import checkpoint as checkpoints
from . import gguf_source, numpy_ops, proof, sentence_transformers, tokenizer
from .checkpoint import Checkpoint, Tensor
from .families import family_of, table_names
from .families.weight import Weight
from .gguf import Entry, Packed
from .gguf_source import GGUFSource

Array = NDArray[Any]
# What a file says of its own writing, and not of the model
REPLACED = (
    *("general.file_type", "general.quantization_version", "general.alignment", "split."),
    *("edge.proof", "edge.requantized_from"),
)

# An encoder's: llama.cpp ends the process where token types are of another type (`Weight.float32`).
ALWAYS_F32 = ("token_types.weight", "position_embd.weight", "cls.output.weight")


@dataclass(frozen=True)
class Source:
    """`entries` are its tensors in the type that holds them as they are; `fields` the metadata of every level.

    `chunks(name, max_bytes, as_is)` gives a tensor's rows: float32, or `as_is` in the entry's own type (BF16 as
    uint16). `extra` are small f32 tensors that no level changes. `expect(file)` computes what a file of it should.
    `key` is all that its bytes depend on; `exact`: what holds every weight has to compute the same.
    """

    title: str
    architecture: str
    fields: Mapping[str, Any]
    entries: Sequence[Entry]
    chunks: Callable[[str, int, bool], Iterator[Array]]
    extra: Mapping[str, Array]
    expect: Callable[[Path], proof.Reference]
    key: Mapping[str, Any]
    exact: bool = True
    notes: tuple[str, ...] = ()


@contextmanager
def opened(path: Path, title: str, prune: Sequence[int] = ()) -> Iterator[Source]:
    """The checkpoint in a folder or a GGUF file, as `from_checkpoint` and `from_gguf` read it."""
    if path.is_dir():
        with checkpoints.open(path) as original:
            yield from_checkpoint(original, title, prune)
    elif prune:
        raise RequestError(
            "layers are left out of checkpoints, not of GGUF files", hint="give the checkpoint"
        )
    else:
        with gguf_source.open(path) as file:
            yield from_gguf(file, title)


def title_of(path: Path) -> str:
    """What the files made of it are called by: the folder's name or the file's, in a hub's cache the repository's."""
    if not path.is_dir():
        return path.stem
    folder = path.resolve()
    repo = folder.parent.parent.name  # models--owner--repo/snapshots/<commit>
    return repo.rpartition("--")[2] if repo.startswith("models--") else folder.name


def from_checkpoint(original: Checkpoint, title: str, prune: Sequence[int] = ()) -> Source:
    """Find the family, check the tensors against the configuration, prove the tokenizer.

    Raises ConversionError where a part is not known, contradicts another or cannot be reproduced, RequestError for
    layers to prune that are not there.
    """
    family = family_of(original.config)
    raw = sentence_transformers.described(original.config, original.text_files)
    config = family.read_config(raw)
    names = table_names(family, original.tensors)
    tensors = {name: original.tensors[names[name]] for name in names}
    ignored = getattr(family, "IGNORED", ())
    head = getattr(family, "head_weights", lambda config: ())(config)
    table = matched(
        tensors, family.weights(config), (*ignored, *(re.escape(weight.source) for weight in head))
    )
    matched(tensors, head, (".*",))
    words = tokenizer.convert(original.path, original.config, config.vocabulary)
    origin = dict(names)
    if prune:
        smaller, kept = pruned(raw, prune)
        config, present = family.read_config(smaller), {weight.source for weight in table}
        earlier = {weight.source: before_pruning(weight.source, kept) for weight in family.weights(config)}
        table = tuple(weight for weight in family.weights(config) if earlier[weight.source] in present)
        origin |= {weight.source: names[earlier[weight.source]] for weight in table}
    by_target = {weight.target: weight for weight in table}
    architecture = config.gguf_architecture

    def chunks(target: str, max_bytes: int, as_is: bool) -> Iterator[Array]:
        weight = by_target[target]
        layout, rows = weight.layout, weight.layout.rows if weight.layout else 1
        name = origin[weight.source]
        raw = as_is and original.tensors[name].dtype == entry_of(weight, original.tensors[name].dtype).type
        for piece in original.chunks(name, max_bytes, raw=raw, rows=rows):
            if layout:
                piece = layout.to_gguf(piece.reshape(-1) if len(weight.shape) == 1 else piece)
            yield piece.reshape(-1, weight.target_shape[-1])

    def expect(file: Path) -> proof.Reference:
        def compute(ids: Array) -> tuple[Array, Array | None]:
            found: tuple[Array, Array | None] = family.forward(
                numpy_ops, lambda name: original.float32(origin[name]), config, ids
            )
            return found

        pooling = getattr(config, "pooling", "none")
        return proof.expected(file, compute, original.sha256(), asdict(words.proof), pooling)

    fields = {"general.architecture": architecture, "general.name": title}
    fields |= {f"{architecture}.{key}": value for key, value in family.metadata(config).items()}
    if words.chat_template:
        fields["tokenizer.chat_template"] = words.chat_template
    if hasattr(family, "whole_fields"):
        fields |= family.whole_fields(config, lambda name: original.float32(origin[name]))
    if named := words.fields.get("general.name"):  # llama.cpp reads the tokenizer by the model's name
        fields["general.name"] = title if named in title.lower() else f"{named} {title}"
    return Source(
        title=title,
        architecture=architecture,
        fields=words.fields | fields,
        entries=[entry_of(weight, original.tensors[origin[weight.source]].dtype) for weight in table],
        chunks=chunks,
        extra=family.extra_tensors(config),
        expect=expect,
        key={"files": stamps(original.sources.values()), "title": title, "prune": sorted(prune)},
        notes=(*original.notes, *family.notes(config), *words.proof.notes),
    )


def from_gguf(file: GGUFSource, title: str) -> Source:
    """A GGUF file to be written at other levels: all of its metadata, its weights as float32.

    What is made of it is held to what llama.cpp computes from it.
    """
    fields: dict[str, Any] = {
        key: Packed(value)
        for key, value in gguf_header.packed(file.path).items()
        if not key.startswith(REPLACED)
    }
    level = file.header.quantization

    def chunks(name: str, max_bytes: int, as_is: bool) -> Iterator[Array]:
        return file.chunks(name, max_bytes)

    def expect(made: Path) -> proof.Reference:
        hashes = {file.path.name: digest(file.path, lambda step: None)}
        return proof.expected(file.path, None, hashes, {"kind": "copied"})

    return Source(
        title=title,
        architecture=file.header.architecture,
        fields=fields | {"edge.requantized_from": level},
        entries=[
            Entry(name, file.shape(name), "F32", fixed=len(file.shape(name)) == 1 or name in ALWAYS_F32)
            for name in file.types
        ],
        chunks=chunks,
        extra={},
        expect=expect,
        key={"files": stamps([file.path]), "title": title},
        exact=False,  # llama.cpp rounds activations for quantized weights, and the reference is such a file
        notes=(f"made from a file at {level}: what that lost stays lost",),
    )


def entry_of(weight: Weight, dtype: str) -> Entry:
    """The tensor in the float type that holds every value of its dtype; vectors are always f32 in GGUF."""
    fixed = weight.float32 or len(weight.target_shape) == 1
    kind = dtype if dtype in ("F16", "BF16") and not fixed else "F32"
    return Entry(weight.target, weight.target_shape, kind, fixed)


def stamps(paths: Any) -> list[tuple[str, int, int]]:
    """Name, size and time of change of each file: enough to see that one was replaced."""
    return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]


def matched(
    tensors: Mapping[str, Tensor], table: Sequence[Weight], ignored: Sequence[str] = ()
) -> tuple[Weight, ...]:
    """The rows that the checkpoint has, its tensors by the table's names; each in its shape, and none beside them.

    `ignored` are regular expressions of further names that may be there. Raises ConversionError.
    """
    wanted = {weight.source: weight for weight in table}
    for source, weight in wanted.items():
        if source not in tensors:
            if weight.required:
                raise ConversionError(
                    f"the checkpoint has no tensor {source}", hint="config.json says it should"
                )
        elif tensors[source].shape != weight.shape:
            raise ConversionError(
                f"{source} is {tensors[source].shape} and config.json makes it {weight.shape}",
                hint="they are not of the same model",
            )
    # Rotation frequencies follow from the configuration; a tied output may have been saved as well.
    known = re.compile("|".join((r".*rotary_emb\.inv_freq", r"lm_head\.weight", *ignored)))
    extra = [name for name in tensors if name not in wanted and not known.fullmatch(name)]
    if extra:
        raise ConversionError(
            f"the checkpoint has {len(extra)} tensors that this family does not know, {extra[0]} among them",
            hint="it may be a variant that is not known here",
        )
    return tuple(weight for weight in table if weight.source in tensors)


def pruned(raw: Mapping[str, Any], layers: Sequence[int]) -> tuple[dict[str, Any], list[int]]:
    """config.json of the model without these layers, and the layers that stay."""
    key = next((key for key in ("num_hidden_layers", "n_layer", "n_layers") if key in raw), "")
    count = raw.get(key, 0)
    if not set(layers) < set(range(count)):
        raise RequestError(
            f"layers {', '.join(map(str, layers))} cannot be left out of {count}",
            hint="they count from 0, and one has to stay",
        )
    kept = [layer for layer in range(count) if layer not in layers]
    one_each = {
        name: [value[layer] for layer in kept]
        for name, value in raw.items()
        if name == "layer_types" and isinstance(value, list) and len(value) == count
    }
    return {**raw, key: len(kept), **one_each}, kept


def before_pruning(name: str, kept: Sequence[int]) -> str:
    """What a tensor of the smaller model is called in the checkpoint."""
    return re.sub(r"\.(\d+)\.", lambda found: f".{kept[int(found[1])]}.", f".{name}", count=1)[1:]
