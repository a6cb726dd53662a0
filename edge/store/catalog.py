"""The catalogue: models known by name, every byte of them promised (`models/catalog.toml`)."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from edge.store.refs import Wheel, parse_wheel


@dataclass(frozen=True)
class EntryFile:
    """One file: the wheel members it is put together from, and what it must come to."""

    name: str
    bytes: int
    sha256: str
    parts: tuple[Wheel, ...]


@dataclass(frozen=True)
class Entry:
    """One catalogue model. `kind` is gguf, checkpoint or onnx; `advice` says how to run it best."""

    name: str
    about: str
    kind: str
    licence: str
    files: tuple[EntryFile, ...]
    advice: Mapping[str, Any]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


@cache
def entries() -> Mapping[str, Entry]:
    """Every entry by its name, in the order of the file."""
    from importlib import resources

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

    text = resources.files("edge.models").joinpath("catalog.toml").read_text(encoding="utf-8")
    return {name: entry(name, fields) for name, fields in tomllib.loads(text).items()}


def entry(name: str, fields: dict[str, Any]) -> Entry:
    files = tuple(entry_file(fields.get("source", ""), file) for file in fields["files"])
    return Entry(name, fields["about"], fields["kind"], fields["licence"], files, fields.get("advice", {}))


def entry_file(source: str, file: dict[str, Any]) -> EntryFile:
    parts = file.get("parts") or [source + file["name"]]
    return EntryFile(file["name"], file["bytes"], file["sha256"], tuple(parse_wheel(part) for part in parts))
