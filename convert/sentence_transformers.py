"""What a sentence-transformers folder adds to config.json: how hidden states become one vector."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge.errors import ConversionError

MODULES, POOLING, SETTINGS = "modules.json", "1_Pooling/config.json", "sentence_bert_config.json"
# Pooling's flags, with our name for each way
MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}
NAMES = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
KNOWN = ("Transformer", "Pooling", "Normalize")


def described(config: Mapping[str, Any], text_files: Mapping[str, Path]) -> Mapping[str, Any]:
    """config.json's values, with {"pooling", "normalize", "reads"} as `sentence_transformers` where the folder is one.

    `text_files` are its files by name (`Checkpoint.text_files`). Raises ConversionError for a module or a way of
    pooling that llama.cpp does not have.
    """
    if MODULES not in text_files:
        return config
    modules = [str(one.get("type")).rpartition(".")[2] for one in rows(text_files[MODULES])]
    for module in modules:
        if module not in KNOWN:
            raise ConversionError(
                f"{MODULES} has a {module} module, which llama.cpp does not compute",
                hint=f"known are {', '.join(KNOWN)}; without {MODULES} the rest converts",
            )
    settings = values(text_files[SETTINGS]) if SETTINGS in text_files else {}
    reads = settings.get("max_seq_length")
    said = {
        "pooling": pooling(text_files) if "Pooling" in modules else "none",
        "normalize": "Normalize" in modules,
        "reads": reads if isinstance(reads, int) and not isinstance(reads, bool) and reads > 0 else 0,
    }
    return {**config, "sentence_transformers": said}


def pooling(text_files: Mapping[str, Path]) -> str:
    """mean, cls or last. Raises ConversionError for other ways, for several at once and where none is said."""
    if POOLING not in text_files:
        raise ConversionError(f"{MODULES} names a Pooling module and there is no {POOLING}")
    said = values(text_files[POOLING])
    chosen = [name for name, on in said.items() if name.startswith("pooling_mode_") and on is True]
    if "pooling_mode" in said:  # as it is written since version 5.2
        one = str(said["pooling_mode"])
        found = [NAMES[one]] if one in NAMES else []
    else:
        one = " + ".join(chosen) or "none"
        found = [MODES[name] for name in chosen if name in MODES]
    if len(found) != 1 or len(chosen) > 1:
        raise ConversionError(
            f"{POOLING} pools by {one[:80]}", hint="llama.cpp has mean, the first token and the last"
        )
    return found[0]


def parsed(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes()[: 1 << 20])
    except (OSError, ValueError, RecursionError) as error:
        raise ConversionError(
            f"{path.name} is no JSON: {error}", hint="download the checkpoint again"
        ) from None


def rows(path: Path) -> list[Mapping[str, Any]]:
    """A JSON list of objects. Raises ConversionError for anything else."""
    found = parsed(path)
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ConversionError(f"{path.name} is no list of modules", hint="download the checkpoint again")
    return found


def values(path: Path) -> Mapping[str, Any]:
    """A JSON object. Raises ConversionError for anything else."""
    found = parsed(path)
    if not isinstance(found, dict):
        raise ConversionError(f"{path.name} is no JSON object", hint="download the checkpoint again")
    return found
