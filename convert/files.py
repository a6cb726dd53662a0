"""The files that are to be: the type of each tensor, the head, the size; known before a weight is read."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge.errors import RequestError

from .gguf import Entry, Head, head
from .quantize import FLOATS, Mixture, Settings, float_types, levels, mixture
from .source import Source

QUANTIZATION_VERSION = 2  # ggml.h, GGML_QNT_VERSION


@dataclass(frozen=True)
class File:
    """One file to write: where it grows, its head, and the type of each tensor."""

    draft: Path
    level: str
    entries: Mapping[str, Entry]
    fell_back: tuple[str, ...]
    needs_importance: bool
    head: Head

    @property
    def bits_per_weight(self) -> float:
        weights = sum(entry.elements for entry in self.entries.values())
        return 8 * sum(entry.bytes for entry in self.entries.values()) / weights


def check_levels(wanted: Sequence[str]) -> None:
    """Raise RequestError for a level that this llama.cpp does not have, or that is named twice."""
    for level in wanted:
        if level not in levels():
            near = difflib.get_close_matches(level, levels(), n=2, cutoff=0.5)
            like = f"there is {' and '.join(near)}; " if near else ""
            raise RequestError(f"{level!r} is not a level", hint=f"{like}`edge convert --levels` lists all")
        if wanted.count(level) > 1:
            raise RequestError(f"level {level} is named twice")
    if not wanted:
        raise RequestError("no level is named", hint="for example --level q8_0")


def file_of(source: Source, level: str, scratch: Path, settings: Settings, prove: bool) -> File:
    """Types and head of one level."""
    small = [Entry(name, values.shape, "F32", fixed=True) for name, values in source.extra.items()]
    entries = [*source.entries, *small]
    if settings.types:
        chosen = Mixture(settings.types)
    elif level in FLOATS:
        chosen = float_types(level, source.entries)
    else:
        blank = scratch / "blank.gguf"
        chosen = dry_run(blank, source.fields, entries, level, settings)
    fields = dict(source.fields)
    if not settings.types:  # a mixture of one's own has no number; readers take the type of most bytes
        fields["general.file_type"] = levels()[level]
    fields |= {
        "general.quantization_version": QUANTIZATION_VERSION,
        "edge.proof": "certificate" if prove else "none",
    }
    if level not in FLOATS:
        fields |= settings.importance_fields
    typed = [*(replace(entry, type=chosen.types[entry.name]) for entry in source.entries), *small]
    draft = scratch / f"{source.title}-{level}.gguf"
    return File(
        draft,
        level,
        {entry.name: entry for entry in typed},
        chosen.fell_back,
        chosen.needs_importance,
        head(fields, typed),
    )


def dry_run(
    blank: Path, fields: Mapping[str, Any], entries: Sequence[Entry], level: str, settings: Settings
) -> Mixture:
    """Ask llama.cpp's quantizer, with a file that has the head of the whole model and holes for its weights."""
    whole = head({key: value for key, value in fields.items() if not key.startswith("tokenizer.")}, entries)
    blank.write_bytes(whole.data)
    try:
        os.truncate(blank, whole.size)
        return mixture(blank, level, entries, settings)
    finally:
        blank.unlink()
