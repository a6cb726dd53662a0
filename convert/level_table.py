"""What the levels take: bits a weight of a model everybody knows, as llama.cpp's quantizer would make it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from .families import llama
from .files import dry_run
from .gguf import Entry
from .quantize import FLOATS, Settings, levels
from .understood import entry_of

# config.json of Meta-Llama-3-8B
MODEL = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 8192,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "vocab_size": 128256,
}


@dataclass(frozen=True)
class Level:
    """Its name, bits a weight over all tensors, and whether it takes an importance matrix."""

    level: str
    bits_per_weight: float
    needs_importance: bool


def level_table() -> tuple[Level, ...]:
    """Every level of the installed llama.cpp, for the shapes of Llama 3 8B."""
    config = llama.read_config(MODEL)
    fields: dict[str, object] = {"general.architecture": "llama"}
    fields |= {f"llama.{key}": value for key, value in llama.metadata(config).items()}
    with TemporaryDirectory() as folder:
        return tuple(level_of(level, Path(folder) / "blank.gguf", fields, config) for level in levels())


def level_of(level: str, blank: Path, fields: dict[str, object], config: llama.Config) -> Level:
    kind = level.upper() if level in FLOATS else "F16"
    entries = [entry_of(row, kind) for row in llama.weights(config)]
    types, needs = {entry.name: entry.type for entry in entries}, False
    if level not in FLOATS:
        chosen = dry_run(blank, fields, entries, level, Settings())
        types, needs = dict(chosen.types), chosen.needs_importance
    made = [Entry(entry.name, entry.shape, types[entry.name]) for entry in entries]
    bits = 8 * sum(entry.bytes for entry in made) / sum(entry.elements for entry in made)
    return Level(level, bits, needs)
