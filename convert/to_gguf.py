"""A checkpoint in, GGUF files out: one read of the source for all levels."""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from edge.errors import ConversionError, RequestError

from . import checkpoint as checkpoints
from . import gguf, tokenizer
from .checkpoint import Checkpoint
from .families import llama
from .families.weight import Weight
from .quantize import Settings, levels, quantize

FAMILIES = dict.fromkeys(llama.ARCHITECTURES, llama)


@dataclass(frozen=True)
class Made:
    """One file that was written: its size in bytes, and the seconds it took after the source was read."""

    path: Path
    level: str
    bytes: int
    seconds: float


def convert(
    source: Path,
    wanted: Sequence[str],
    folder: Path,
    *,
    name: str | None = None,
    settings: Settings | None = None,
) -> tuple[Made, ...]:
    """Write the checkpoint in `source` as `folder/NAME-LEVEL.gguf` for every level wanted.

    Raises RequestError for an unknown level, UnsafeFile for a damaged checkpoint, ConversionError for one that is
    not known, contradicts itself, or whose tokenizer llama.cpp cannot reproduce.
    """
    unknown = [level for level in wanted if level not in levels()]
    if unknown:
        raise RequestError(f"{unknown[0]!r} is not a level", hint=f"there are {', '.join(levels())}")
    with checkpoints.open(source) as original:
        family = family_of(original.config)
        config = family.read_config(original.config)
        table = matched(original, family.weights(config))
        words = tokenizer.convert(original.path, original.config, config.vocabulary)
        title = name or source.resolve().name
        fields: dict[str, Any] = {"general.name": title}
        fields |= {
            f"{family.GGUF_ARCHITECTURE}.{key}": value for key, value in family.metadata(config).items()
        }
        if words.chat_template:
            fields["tokenizer.chat_template"] = words.chat_template

        def write(path: Path, level: str) -> Path:
            return gguf.write(
                path,
                family.GGUF_ARCHITECTURE,
                fields,
                table,
                original.float32,
                level=level,
                extra=family.extra_tensors(config),
                more=lambda writer: tokenizer.add_fields(writer, words.fields),
            )

        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".edge-", dir=folder) as scratch:
            whole: Path | None = None
            made = []
            for level in wanted:
                started = perf_counter()
                target = folder / f"{title}-{level}.gguf"
                if level in gguf.DIRECT:
                    write(target, level)
                else:
                    whole = whole or write(Path(scratch) / "whole.gguf", lossless(original))
                    quantize(whole, target, level, settings or Settings())
                made.append(Made(target, level, target.stat().st_size, perf_counter() - started))
    return tuple(made)


def family_of(config: Any) -> Any:
    """The family of a config.json. Raises ConversionError naming the nearest known architecture."""
    named = config.get("architectures")
    architecture = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else None
    if architecture is None:
        raise ConversionError(
            "config.json names no architecture", hint="it is needed to know what the tensors mean"
        )
    if architecture not in FAMILIES:
        near = difflib.get_close_matches(architecture, FAMILIES, n=1, cutoff=0.3)
        nearest = f"the nearest known one is {near[0]}; " if near else ""
        raise ConversionError(
            f"{architecture} is not an architecture that is known here",
            hint=f"{nearest}known are {', '.join(FAMILIES)}",
        )
    return FAMILIES[architecture]


def matched(original: Checkpoint, table: Sequence[Weight]) -> Sequence[Weight]:
    """The table, if the checkpoint has exactly its tensors in exactly its shapes. Raises ConversionError."""
    wanted = {weight.source: weight.shape for weight in table}
    for source, shape in wanted.items():
        if source not in original.tensors:
            raise ConversionError(f"the checkpoint has no tensor {source}", hint="config.json says it should")
        if original.tensors[source].shape != shape:
            raise ConversionError(
                f"{source} is {original.tensors[source].shape} and config.json makes it {shape}",
                hint="they are not of the same model",
            )
    # Rotation frequencies follow from the configuration; old checkpoints carry them all the same.
    extra = [
        name for name in original.tensors if name not in wanted and not name.endswith("rotary_emb.inv_freq")
    ]
    if "lm_head.weight" in extra and "lm_head.weight" not in wanted:
        extra.remove("lm_head.weight")  # a tied output that was saved as well
    if extra:
        raise ConversionError(
            f"the checkpoint has {len(extra)} tensors that this family does not know, {extra[0]} among them",
            hint="it may be a variant that is not known here",
        )
    return table


def lossless(original: Checkpoint) -> str:
    """The level that holds every weight of the source as it is."""
    kinds = {tensor.dtype for tensor in original.tensors.values()}
    return "bf16" if kinds == {"BF16"} else "f16" if kinds == {"F16"} else "f32"
