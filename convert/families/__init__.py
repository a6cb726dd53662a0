"""One module a model family: its configuration, its tensors' names and layouts, its forward pass.

Each has `read_config(raw)`, `weights(config)`, `metadata(config)`, `extra_tensors(config)`, `notes(config)` and
`forward(ops, weight, config, ids)`; its configuration has `gguf_architecture`, `vocabulary` and `context`.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

from edge.errors import ConversionError

# config.json's architecture → the module that knows it
KNOWN = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
}


def family_of(config: Mapping[str, Any]) -> Any:
    """The module of a config.json's family. Raises ConversionError naming the nearest known architecture."""
    named = config.get("architectures")
    architecture = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else None
    if architecture is None:
        raise ConversionError(
            "config.json names no architecture", hint="it is needed to know what the tensors mean"
        )
    if architecture not in KNOWN:
        near = difflib.get_close_matches(architecture, KNOWN, n=1, cutoff=0.7)
        nearest = f"the nearest known one is {near[0]}; " if near else ""
        raise ConversionError(
            f"{architecture} is not an architecture that is known here",
            hint=f"{nearest}known are {', '.join(KNOWN)}",
        )
    return importlib.import_module(f".{KNOWN[architecture]}", __name__)
