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
from edge.errors import RequestError
from edge.store.content import digest

from . import checkpoint as checkpoints
from . import gguf_source, numpy_ops, proof, tokenizer
from .checkpoint import Checkpoint
from .gguf import Entry, Packed
from .gguf_source import GGUFSource
from .quantize import LEVELS
from .safetensors import is_name
from .understood import understand, without_layers

Array = NDArray[Any]
# the level at the end of a file's name, which is not that of what is made of it
LEVEL = re.compile(rf"[-.](?:{'|'.join(LEVELS)})\Z", re.IGNORECASE)
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


def title_of(path: Path, name: str | None = None) -> str:
    """What the files made of it begin with: `name`, else the folder's or the file's, in a hub's cache the repository's.

    Raises RequestError for what would lead to another folder or be hidden.
    """
    title = name or (named(path.resolve()) if path.is_dir() else LEVEL.sub("", path.stem))
    if not is_name(title) or title.startswith("."):
        raise RequestError(f"{title!r} cannot begin files' names", hint="give another with --name")
    return title


def named(folder: Path) -> str:
    repo = folder.parent.parent.name  # models--owner--repo/snapshots/<commit>
    return repo.rpartition("--")[2] if repo.startswith("models--") else folder.name


def from_checkpoint(original: Checkpoint, title: str, prune: Sequence[int] = ()) -> Source:
    """Find the family, check the tensors against the configuration, prove the tokenizer.

    Raises ConversionError where a part is not known, contradicts another or cannot be reproduced, RequestError for
    layers to prune that are not there.
    """
    model = understand(original)
    if prune:
        model = without_layers(model, prune)
    of_model = model.fields()
    words = tokenizer.convert(original.path, original.config, model.config.vocabulary)
    by_target = {weight.target: weight for weight in model.table}
    fields = {**words.fields, **of_model, "general.name": name_of(title, words.fields)}
    notes = [*original.notes, *model.family.notes(model.config), *words.proof.notes]
    if hasattr(model.config, "task"):
        if words.json:  # llama.cpp's tokenizer does not say which characters a token stands for
            fields[gguf_header.HF_TOKENIZER] = words.json
        if model.config.reads:
            fields["edge.max_tokens"] = model.config.reads
    if words.chat_template:
        fields["tokenizer.chat_template"] = words.chat_template
    elif not hasattr(model.config, "task"):  # encoders do not chat
        notes.append("the checkpoint has no chat template: `edge chat` needs --template for the file")

    if prune:
        fields["edge.pruned_layers"] = sorted(prune)
        left = ", ".join(map(str, sorted(prune)))
        notes.append(f"without layers {left}; what the file is held to is the model without them, too")

    def chunks(target: str, max_bytes: int, as_is: bool) -> Iterator[Array]:
        return model.chunks(by_target[target], max_bytes, as_is)

    def expect(file: Path) -> proof.Reference:
        return proof.expected(
            file,
            lambda ids: model.forward(numpy_ops, ids),
            original.sha256(),
            asdict(words.proof),
            getattr(model.config, "pooling", "none"),
        )

    return Source(
        title=title,
        architecture=model.config.gguf_architecture,
        fields=fields,
        entries=[model.entry(weight) for weight in model.table],
        chunks=chunks,
        extra=model.family.extra_tensors(model.config),
        expect=expect,
        key={"files": stamps(original.sources.values()), "title": title, "prune": sorted(prune)},
        notes=tuple(notes),
    )


def name_of(title: str, fields: Mapping[str, Any]) -> str:
    """What a file says it is: llama.cpp reads some tokenizers by the model's name, which is put before then."""
    named = fields.get("general.name")
    return title if not named or named in title.lower() else f"{named} {title}"


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


def stamps(paths: Any) -> list[tuple[str, int, int]]:
    """Name, size and time of change of each file: enough to see that one was replaced."""
    return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
