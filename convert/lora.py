"""A LoRA adapter as PEFT saves it, into the GGUF adapter that llama.cpp adds to its base model.

A module's weight W becomes W + s·B·A, with A (rank, in), B (out, rank) (Hu et al., 2021, arXiv:2106.09685) and
s = alpha / rank, or alpha / √rank (rsLoRA, arXiv:2312.03732). llama.cpp takes one alpha for the whole file and
divides it by each tensor's rank, so what differs from module to module is multiplied into B.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from os.path import isfile, lexists
from pathlib import Path
from typing import Any

import numpy as np

from edge import gguf_header
from edge.errors import ConversionError, RequestError, StoreError
from edge.store.checkpoints import ADAPTER_CONFIG as CONFIG
from edge.store.checkpoints import ADAPTER_WEIGHTS as WEIGHTS
from edge.store.checkpoints import CONFIG as MODEL_CONFIG

from . import gguf, gguf_source
from .checkpoint import Checkpoint, Tensor, inside, read_json
from .families import family_of, family_of_gguf
from .families.config import need
from .families.weight import Array, Weight
from .files import QUANTIZATION_VERSION
from .quantize import FLOATS, levels
from .safetensors import NO_PICKLE, PICKLES, atomic, bad, header_of, open_file, reading, writing
from .source import title_of
from .stream import put
from .to_safetensors import narrowed

# Rows as short as a rank are not whole blocks of any smaller type.
LEVELS = FLOATS
TENSOR = re.compile(r"base_model\.model\.(.+)\.lora_(embedding_)?([AB])(?:\.weight)?")
# Beside an adapted embedding PEFT saves the frozen weight itself.
FROZEN = re.compile(r"base_model\.model\.(.+)\.base_layer\.weight")
# Ways to begin A and B that leave the base model's weights alone; the others need a changed base.
BEGINNINGS = (None, True, False, "gaussian", "eva", "orthogonal")
# What PEFT can do besides, and llama.cpp's adapters cannot; by its key, with the value that means nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "use_qalora": (False, None),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None, []),
    "use_bdlora": (False, None),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
    "velora_config": (None,),
}


@dataclass(frozen=True)
class Settings:
    """What adapter_config.json says: by module name, where it is not one for all."""

    rank: int
    alpha: float
    ranks: Mapping[str, Any]
    alphas: Mapping[str, Any]
    rank_stabilized: bool
    base: str | None

    @property
    def file_alpha(self) -> float:
        """The alpha that gives most modules their scale after a division by their rank."""
        return self.alpha * math.sqrt(self.rank) if self.rank_stabilized else self.alpha

    def factor(self, module: str, rank: int) -> float:
        """What B is multiplied by, so that `file_alpha / rank` is the module's scale."""
        alpha = need({"lora_alpha": of_module(self.alphas, module, self.alpha)}, "lora_alpha", float)
        scale = alpha / (math.sqrt(rank) if self.rank_stabilized else rank)
        return float(scale * rank / self.file_alpha)


@dataclass(frozen=True)
class Pair:
    """One adapted matrix of the base model: the names of its A and B in the adapter."""

    weight: Weight
    a: str
    b: str
    factor: float
    embedding: bool


def convert_adapter(folder: Path, target: Path, *, base: Path | None = None, level: str = "f16") -> Path:
    """Write the adapter in `folder` as the GGUF file `target`; the same input gives the same bytes.

    base   the base model: a folder with its config.json, or a GGUF file of it; else the one the adapter names
    level  f32, f16 or bf16

    Raises RequestError for another level, UnsafeFile for a damaged adapter, ConversionError for one that llama.cpp
    could not apply as PEFT does or that is not of this base, StoreError where nothing can be written or `target` is
    there already.
    """
    if level not in LEVELS:
        raise RequestError(f"an adapter cannot be {level}", hint=f"there are {', '.join(LEVELS)}")
    if lexists(target):
        raise StoreError(f"{target} is there already", hint="remove it, or choose --name or --out")
    settings = read_settings(read_json(inside(folder, CONFIG)))
    family, config = base_of(folder, base, settings.base)
    with opened(folder) as adapter:
        found = pairs(adapter, family.weights(config), settings)
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        write(adapter, found, settings, target, config.gguf_architecture, title_of(folder), level)
    return target


def read_settings(raw: Mapping[str, Any]) -> Settings:
    """Raises ConversionError for what llama.cpp's adapters have no place for, naming it."""
    if raw.get("peft_type") != "LORA":
        raise ConversionError(
            f"the adapter is of type {raw.get('peft_type')!r}", hint="llama.cpp applies LORA only"
        )
    for key, harmless in UNSUPPORTED.items():
        if raw.get(key) not in harmless:
            raise ConversionError(
                f"the adapter's {key} is {str(raw[key])[:60]!r}, and a GGUF adapter has no place for it",
                hint="merge it into its base model with PEFT, and convert that",
            )
    beginning = raw.get("init_lora_weights")
    if beginning not in BEGINNINGS:
        raise ConversionError(
            f"init_lora_weights is {str(beginning)[:60]!r}, which changes the base model itself",
            hint="save it with PEFT's path_initial_model_for_weight_conversion, or merge it",
        )
    ranks, alphas = raw.get("rank_pattern") or {}, raw.get("alpha_pattern") or {}
    if not isinstance(ranks, Mapping) or not isinstance(alphas, Mapping):
        raise ConversionError(f"{CONFIG}: rank_pattern and alpha_pattern have to map names to numbers")
    for name in (*ranks, *alphas):
        if not re.fullmatch(r"\^?[\w.]+", name):
            raise ConversionError(
                f"{CONFIG}: {name[:60]!r} is an expression", hint="rank_pattern and alpha_pattern take names"
            )
    base = raw.get("base_model_name_or_path")
    return Settings(
        rank=need(raw, "r"),
        alpha=need(raw, "lora_alpha", float),
        ranks=ranks,
        alphas=alphas,
        rank_stabilized=bool(raw.get("use_rslora")),
        base=base if isinstance(base, str) else None,
    )


def of_module(patterns: Mapping[str, Any], module: str, otherwise: Any) -> Any:
    """The value of the first pattern that is the module's whole name (with ^) or the end of it, as PEFT reads them."""
    for pattern, value in patterns.items():
        name = pattern.removeprefix("^")
        if module == name or (name == pattern and module.endswith("." + name)):
            return value
    return otherwise


def base_of(folder: Path, base: Path | None, named: str | None) -> tuple[Any, Any]:
    """The family and configuration of the base model. Raises ConversionError where there is none to ask."""
    if base is None:
        if named is None or not isfile(Path(named) / MODEL_CONFIG):  # noqa: PTH113 (of names too long, too)
            raise ConversionError(
                f"the adapter's base model {str(named)[:80]!r} is no folder here",
                hint="name the base model: its folder, or a GGUF file of it",
            )
        base = Path(named)
    if base.suffix == ".gguf":
        header = gguf_header.read(base)
        family = family_of_gguf(header.architecture)
        with gguf_source.open(base) as source:
            raw = family.config_json(header, source.float32)
    else:
        raw = read_json(inside(base, MODEL_CONFIG))
    family = family_of(raw)
    return family, family.read_config(raw)


@contextmanager
def opened(folder: Path) -> Iterator[Checkpoint]:
    """The adapter's tensors, read as a checkpoint's are."""
    if not lexists(folder / WEIGHTS):
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in PICKLES)
        if pickles:
            raise bad(
                f"{folder} has its weights only as a pickle ({pickles[0][:80]!r}), never opened", NO_PICKLE
            )
        raise ConversionError(f"{folder} has no {WEIGHTS}", hint="the adapter is incomplete")
    with reading(folder), ExitStack() as files:
        file = files.enter_context(open_file(folder / WEIGHTS))
        tensors = {
            name: Tensor(info.dtype, info.shape, info.bytes, WEIGHTS, info.offset)
            for name, info in header_of(file, WEIGHTS).items()
        }
        sources = {name: folder / name for name in (CONFIG, WEIGHTS)}
        yield Checkpoint(folder, {}, tensors, {}, sources, (), {WEIGHTS: file})


def pairs(adapter: Checkpoint, table: Sequence[Weight], settings: Settings) -> list[Pair]:
    """The adapted matrices in the order of the base's table, each checked against its shape.

    Raises ConversionError for a tensor that is no part of a pair or whose module the base lacks.
    """
    modules = {row.source.removesuffix(".weight"): row for row in table if len(row.target_shape) == 2}
    found: dict[str, dict[str, str]] = {}
    for name in adapter.tensors:
        part = TENSOR.fullmatch(name)
        frozen = FROZEN.fullmatch(name)
        if frozen and frozen[1] in modules and adapter.tensors[name].shape == modules[frozen[1]].shape:
            continue
        if part is None:
            raise ConversionError(f"{name[:120]} is no part of a LoRA", hint="llama.cpp has no place for it")
        module = (
            part[1] if part[1] in modules else part[1].partition(".")[2]
        )  # a bare base has no `transformer.`
        if module not in modules:
            tied = part[1].endswith("lm_head")
            raise ConversionError(
                f"the adapter changes {part[1][:120]}, which the base model has not",
                hint="its output is tied to the embedding" if tied else "is it of another model?",
            )
        if found.setdefault(module, {}).setdefault(part[3], name) != name:
            raise ConversionError(
                f"{name[:120]} is there under another name, too", hint="one of them is wrong"
            )
    if not found:
        raise ConversionError("the adapter holds no tensors", hint="it is incomplete")
    untied = any(row.target == "output.weight" for row in table)
    return [
        checked(adapter, modules[module], module, found[module], settings, untied)
        for module in modules
        if module in found
    ]


def checked(
    adapter: Checkpoint, row: Weight, module: str, names: Mapping[str, str], settings: Settings, untied: bool
) -> Pair:
    """One pair, if it is whole and fits its matrix."""
    if set(names) != {"A", "B"}:
        raise ConversionError(f"the adapter of {module} lacks its A or B", hint="it is incomplete")
    embedding = "lora_embedding" in names["A"]
    if embedding != (row.target == "token_embd.weight"):
        raise ConversionError(f"{module} is adapted as what it is not", hint="is it of another model?")
    if embedding and not untied:
        raise ConversionError(
            f"the adapter changes {module}, to which the output is tied",
            hint="llama.cpp would apply it to both and fail; merge it with PEFT instead",
        )
    rank = need({"r": of_module(settings.ranks, module, settings.rank)}, "r")
    rows, columns = row.target_shape[::-1] if embedding else row.target_shape
    for which, shape in (("A", (rank, columns)), ("B", (rows, rank))):
        if adapter.tensors[names[which]].shape != shape:
            raise ConversionError(
                f"{names[which][:120]} is {adapter.tensors[names[which]].shape}, where {shape} fits the base",
                hint="they are not of the same model",
            )
    return Pair(row, names["A"], names["B"], settings.factor(module, rank), embedding)


def write(
    adapter: Checkpoint,
    found: Sequence[Pair],
    settings: Settings,
    target: Path,
    architecture: str,
    name: str,
    level: str,
) -> None:
    fields = {
        "general.architecture": architecture,
        "general.type": "adapter",
        "general.name": name,
        "general.file_type": levels()[level],
        "general.quantization_version": QUANTIZATION_VERSION,
        "adapter.type": "lora",
        "adapter.lora.alpha": float(settings.file_alpha),
    }
    entries = [
        gguf.Entry(f"{pair.weight.target}.lora_{side}", shape_of(adapter, pair, side), level.upper())
        for pair in found
        for side in "ab"
    ]
    head = gguf.head(fields, entries)
    with atomic(target, head.size) as fd:
        with writing(target):
            os.truncate(fd, head.size)
            put(fd, head.data, 0)
        for index, entry in enumerate(entries):
            data = encoded(values(adapter, found[index // 2], "ab"[index % 2]), level, entry.name)
            with writing(target):
                put(fd, data, head.places[entry.name])


def shape_of(adapter: Checkpoint, pair: Pair, side: str) -> tuple[int, ...]:
    """Of `values`, without reading them."""
    if side == "b":
        return adapter.tensors[pair.b].shape
    return adapter.tensors[pair.a].shape[:: -1 if pair.embedding else 1]


def values(adapter: Checkpoint, pair: Pair, side: str) -> Array:
    """A or B in GGUF's layout: llama.cpp looks rows of an embedding's A up, and orders B's rows as the base's."""
    if side == "a":
        a = adapter.float32(pair.a)
        return a.T if pair.embedding else a
    b: Array = adapter.float32(pair.b) * np.float32(pair.factor)
    layout, row = pair.weight.layout, pair.weight
    # GGUF turns Conv1D's weight (fan_in_fan_out) into the order that A and B have already.
    if layout is None or row.gguf_shape == row.shape[::-1]:
        return b
    if row.gguf_shape is None and layout.rows:
        return layout.to_gguf(b)
    raise ConversionError(f"adapters of {row.source} are not known here", hint="merge it with PEFT instead")


def encoded(x: Array, level: str, name: str) -> bytes:
    """Raises ConversionError for a value that is too large for the level."""
    data = narrowed(x, level.upper())
    if level == "f16" and not np.isfinite(data).all():
        raise ConversionError(f"{name} has values beyond f16", hint="make the file f32 or bf16")
    return data.tobytes()
