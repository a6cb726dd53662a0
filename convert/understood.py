"""A checkpoint that was understood: its family, and each of its tensors in GGUF's name and layout."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from edge.errors import ConversionError, RequestError

from . import sentence_transformers
from .checkpoint import Checkpoint, Tensor
from .families import family_of, table_names
from .families.weight import Weight
from .gguf import Entry

Array = NDArray[Any]

# A configuration's attributes that have an item for each layer
OF_EACH_LAYER = ("sliding", "windows")


@dataclass(frozen=True)
class Understood:
    """A checkpoint as its family sees it.

    `table` are the family's rows that the checkpoint has, `names` its name for each of the table's.
    """

    checkpoint: Checkpoint
    family: Any
    config: Any
    table: tuple[Weight, ...]
    names: Mapping[str, str]

    def entry(self, weight: Weight) -> Entry:
        """The tensor in the float type that holds every value of its dtype."""
        return entry_of(weight, self.checkpoint.tensors[self.names[weight.source]].dtype)

    def float32(self, name: str) -> Array:
        """A tensor by its name in the table."""
        return self.checkpoint.float32(self.names[name])

    def chunks(self, weight: Weight, max_bytes: int, as_is: bool) -> Iterator[Array]:
        """A tensor's rows in GGUF's layout: float32, or `as_is` in its entry's type where that is its dtype."""
        layout, name = weight.layout, self.names[weight.source]
        raw = as_is and self.checkpoint.tensors[name].dtype == self.entry(weight).type
        for piece in self.checkpoint.chunks(name, max_bytes, raw=raw, rows=layout.rows if layout else 1):
            if layout:
                piece = layout.to_gguf(piece.reshape(-1) if len(weight.shape) == 1 else piece)
            yield piece.reshape(-1, weight.target_shape[-1])

    def forward(self, ops: Any, ids: Array) -> tuple[Array, Array | None]:
        """What the model computes of ids (tokens,): hidden states and logits as its family gives them."""
        found: tuple[Array, Array | None] = self.family.forward(ops, self.float32, self.config, ids)
        return found

    def fields(self) -> dict[str, Any]:
        """The GGUF keys of its architecture, and those that its family has beside.

        Raises ConversionError for a model that llama.cpp has no architecture for.
        """
        if not hasattr(self.family, "metadata"):
            raise ConversionError(
                f"{self.config.architecture} has no GGUF form here: llama.cpp does not compute it",
                hint="convert it with --to onnx",
            )
        architecture = self.config.gguf_architecture
        found = {"general.architecture": architecture}
        found |= {f"{architecture}.{key}": value for key, value in self.family.metadata(self.config).items()}
        if hasattr(self.family, "whole_fields"):
            found |= self.family.whole_fields(self.config, self.float32)
        return found


def understand(original: Checkpoint) -> Understood:
    """Find the family, and hold the tensors to the configuration.

    Raises ConversionError for an architecture that is not known, and where the two contradict each other.
    """
    family = family_of(original.config)
    config = family.read_config(sentence_transformers.described(original.config, original.text_files))
    names = table_names(family, original.tensors)
    tensors = {name: original.tensors[theirs] for name, theirs in names.items()}
    head = family.head_weights(config) if hasattr(family, "head_weights") else ()
    beside = (*getattr(family, "IGNORED", ()), *(re.escape(weight.source) for weight in head))
    table = matched(tensors, family.weights(config), beside)
    matched(tensors, head, (".*",))
    return Understood(original, family, config, table, names)


def entry_of(weight: Weight, dtype: str) -> Entry:
    """The tensor in the float type that holds every value of a dtype; vectors are always f32 in GGUF."""
    fixed = weight.float32 or len(weight.target_shape) == 1
    kind = dtype if dtype in ("F16", "BF16") and not fixed else "F32"
    return Entry(weight.target, weight.target_shape, kind, fixed)


def matched(
    tensors: Mapping[str, Tensor], table: Sequence[Weight], beside: Sequence[str] = ()
) -> tuple[Weight, ...]:
    """The rows that the checkpoint has, its tensors by the table's names; each in its shape, and no other tensor.

    `beside` are regular expressions of further names that may be there. Raises ConversionError.
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
    known = re.compile("|".join((r".*rotary_emb\.inv_freq", r"lm_head\.weight", *beside)))
    extra = [name for name in tensors if name not in wanted and not known.fullmatch(name)]
    if extra:
        raise ConversionError(
            f"the checkpoint has {len(extra)} tensors that this family does not know, {extra[0]} among them",
            hint="it may be a variant that is not known here",
        )
    return tuple(weight for weight in table if weight.source in tensors)


def without_layers(whole: Understood, layers: Sequence[int]) -> Understood:
    """The model without these layers; each that stays keeps its own tensors and its own window.

    Raises RequestError for layers that are not there, and where none would stay.
    """
    count = whole.config.layers
    if getattr(whole.config, "sequence", ()):
        raise RequestError(
            "layers that share their weights are not left out one by one",
            hint="convert it without --prune-layers",
        )
    if not set(layers) < set(range(count)):
        raise RequestError(
            f"layers {', '.join(map(str, layers))} cannot be left out of {count}",
            hint="they count from 0, and one has to stay",
        )
    kept = [layer for layer in range(count) if layer not in layers]
    of_each = {
        name: tuple(getattr(whole.config, name)[layer] for layer in kept)
        for name in OF_EACH_LAYER
        if hasattr(whole.config, name)
    }
    config = replace(whole.config, layers=len(kept), **of_each)
    present = {weight.source for weight in whole.table}
    before = {weight.source: before_pruning(weight.source, kept) for weight in whole.family.weights(config)}
    table = tuple(weight for weight in whole.family.weights(config) if before[weight.source] in present)
    names = {weight.source: whole.names[before[weight.source]] for weight in table}
    return replace(whole, config=config, table=table, names={**whole.names, **names})


def before_pruning(name: str, kept: Sequence[int]) -> str:
    """What a tensor of the smaller model is called in the checkpoint."""
    return re.sub(r"\.(\d+)\.", lambda found: f".{kept[int(found[1])]}.", f".{name}", count=1)[1:]
