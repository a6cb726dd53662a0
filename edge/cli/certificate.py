"""The certificate that `edge convert` wrote beside a GGUF file or into an ONNX folder, read with distrust."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge import onnx_folder
from edge.store import Model
from edge.store.records import RECORD, File

MAX_BYTES = 8 << 20  # a model of 10,000 tensors has a certificate of 1 MiB
MAX_VALUES = 1 << 18  # commas and brackets: bounds the memory its values take
# What is shown, in this order, and how it is written; `edge.convert.proof` says what each figure is.
FIGURES = {
    "cosine": ("cosine", "{:.6f}"),
    "logit_error": ("logit error", "{:.2g}"),
    "hidden_error": ("hidden error", "{:.2g}"),
    "kl_divergence": ("KL divergence", "{:.2g}"),
    "top1_agreement": ("top-1 agreement", "{:.1%}"),
}
NOT_ITS = "none: beside it lies a JSON that is not its certificate"


def certificate_of(model: Model, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """`certificate`, what stands beside the file or None, and `certificate_note`, why there is none.

    It is believed when it has a certificate's form and gives this file's length, and its hash where the store
    knows that; showing reads no weights. `metadata` is the file's own: `edge.proof` says if one was made.
    """
    if onnx_folder.is_folder(model.path):
        return of_folder(model.path)
    path = model.path.with_suffix(".json")
    recorded = not model.in_place and path.name == RECORD  # the store's own, of a file called model.gguf
    made = metadata.get("edge.proof")
    if not recorded and os.path.lexists(path):
        found = read(path)
        known = model.sha256 if len(model.files) == 1 else ""
        same = found and found["bytes"] == model.path.stat().st_size and known in ("", found["sha256"])
        if same:
            return {"certificate": found, "certificate_note": ""}
        return {"certificate": None, "certificate_note": NOT_ITS}
    notes = {"none": "none (--no-proof)", "certificate": f"none here: {path.name} is not beside the file"}
    return {"certificate": None, "certificate_note": notes.get(str(made), "")}


def of_folder(folder: Path) -> dict[str, Any]:
    """The same of an ONNX folder: its certificate gives its graph's name, and the length of that and its data."""
    path = folder / onnx_folder.CERTIFICATE
    if not os.path.lexists(path):
        return {"certificate": None, "certificate_note": ""}
    found = read(path)
    weights = [folder / name for name in (onnx_folder.GRAPH, onnx_folder.DATA)]
    length = sum(file.stat().st_size for file in weights if file.is_file())
    if found and found["file"] == onnx_folder.GRAPH and found["bytes"] == length:
        return {"certificate": found, "certificate_note": ""}
    return {"certificate": None, "certificate_note": NOT_ITS}


def promised(model: Model) -> tuple[Path, tuple[File, ...]] | None:
    """The certificate of a GGUF file or ONNX folder that was never pulled, and the files whose hashes it states."""
    if onnx_folder.is_folder(model.path) or model.path.name == onnx_folder.GRAPH:
        weights = model.path if model.path.is_dir() else model.path.parent
        path = weights / onnx_folder.CERTIFICATE
        names = {onnx_folder.GRAPH: "sha256", onnx_folder.DATA: "data_sha256"}
    elif model.path.suffix == ".gguf" and len(model.files) == 1:
        weights, path, names = model.path.parent, model.path.with_suffix(".json"), {model.path.name: "sha256"}
    else:
        return None
    found = read(path)
    if not found or (path.name == onnx_folder.CERTIFICATE and found["file"] != onnx_folder.GRAPH):
        return None
    stated = {name: found[key] for name, key in names.items() if isinstance(found.get(key), str)}
    return path, tuple(File(weights / name, 0, sha256, str(path), "") for name, sha256 in stated.items())


def read(path: Path) -> dict[str, Any] | None:
    """The certificate in a file; None for one that is damaged, huge, unreadable or something else."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return None
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES or sum(map(text.count, (b",", b"[", b"{"))) > MAX_VALUES:
            return None
        found = json.loads(text, parse_constant=refuse)
    except (OSError, ValueError, RecursionError):
        return None
    return found if is_certificate(found) else None


def refuse(constant: str) -> None:
    """NaN and Infinity are no JSON, though Python reads them."""
    raise ValueError(constant)


def is_certificate(found: Any) -> bool:
    """Whether a JSON value has the form of `edge.convert.proof.Certificate`, as far as it is shown."""
    if not isinstance(found, dict):
        return False
    texts = all(isinstance(found.get(key), str) for key in ("file", "level", "sha256"))
    tables = all(isinstance(found.get(key), dict) for key in ("source", "tools", "tokenizer", "comparison"))
    if not texts or not tables or not is_number(found.get("bytes")):
        return False
    comparison = found["comparison"]
    figures = (comparison.get(key) for key in FIGURES)
    return is_number(comparison.get("tokens")) and all(one is None or is_number(one) for one in figures)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300  # nor NaN


def certificate_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The rows of the table: how near it comes to its source, and what it was made of."""
    found = facts.get("certificate")
    if not found:
        return [("certificate", facts.get("certificate_note", ""))]
    comparison, tokenizer = found["comparison"], found["tokenizer"]
    shown = [
        f"{label} {form.format(comparison[key])}"
        for key, (label, form) in FIGURES.items()
        if comparison.get(key) is not None
    ]
    probes, differences = tokenizer.get("probes"), tokenizer.get("differences")
    compared = is_number(probes) and isinstance(differences, list)
    words = f"tokenizer equal on {probes - len(differences)} of {probes} texts" if compared else ""
    return [
        ("certificate", f"{', '.join(shown) or 'made'} over {comparison['tokens']:,} tokens"),
        ("made of", " · ".join(filter(None, (made_of(found["source"]), words, tools(found["tools"]))))),
    ]


def made_of(source: Mapping[str, Any]) -> str:
    """The source files with the beginnings of their hashes: weights first, the others counted."""
    weights = [name for name in source if name.endswith((".safetensors", ".gguf"))]
    shown = [f"{name[:60]} {str(source[name])[:12]}…" for name in weights[:1]]
    rest = len(source) - len(shown)
    return " and ".join([*shown, *([f"{rest} other file{'s' * (rest > 1)}"] if rest else [])])


def tools(versions: Mapping[str, Any]) -> str:
    """The two that computed: ours and llama.cpp's binding."""
    named = ((name, versions.get(name)) for name in ("edge-runtime", "llama-cpp-python"))
    return ", ".join(f"{name} {version[:20]}" for name, version in named if isinstance(version, str))
