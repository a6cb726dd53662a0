"""`edge show`: a model from its header alone, which takes milliseconds whatever its size."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import click

from edge import onnx_folder
from edge.cli.certificate import certificate_of, certificate_rows
from edge.cli.output import emit_json, json_option, size, table
from edge.cli.references import complete_ref
from edge.cli.show_head import HEAD, head_facts, head_rows
from edge.errors import UnsafeFile
from edge.gguf_header import Array, Header, read
from edge.onnx_folder import is_folder
from edge.store import Model, resolve
from edge.store.checkpoints import is_adapter

MAX_CONFIG = 1 << 20  # bytes of a config.json worth reading
MAX_TEXT = 1 << 16  # characters of a text in JSON: a chat template, not a tokenizer
MAX_SHOWN = 128  # elements of an array in JSON: enough for one figure a layer


@click.command()
@click.argument("ref", shell_complete=complete_ref)
@json_option
def command(ref: str, as_json: bool) -> None:
    """Show what a model file says of itself.

    REF is a model kept here, or a path. Only the header is read, never the weights: it takes milliseconds
    and no memory worth naming. The certificate that `edge convert` wrote beside a file is shown with it. A
    checkpoint's folder is listed, an ONNX folder shown by its config.json, what `edge train` made by its
    head.json; weights and graphs are not opened.
    """
    model = resolve(ref)
    facts = provenance(model)
    if model.path.suffix.lower() == ".gguf":
        header = read(model.path)
        facts |= gguf_facts(header) | certificate_of(model, header.metadata)
        if as_json:
            facts["metadata"] = {key: summary(value) for key, value in header.metadata.items()}
    elif is_folder(model.path):
        facts |= listing(model) | onnx_facts(model.path) | certificate_of(model, {})
    elif (model.path / HEAD).is_file():
        facts |= listing(model) | head_facts(model.path)
    else:
        facts |= listing(model)
    if as_json:
        emit_json(facts)
    else:
        click.echo(table([(label, printable(text)) for label, text in rows(facts)]))


def provenance(model: Model) -> dict[str, Any]:
    """What the store knows, before the file is asked."""
    return {
        "name": model.name,
        "path": model.path,
        "bytes": model.bytes,
        "licence": model.licence,
        "ref": model.ref,
        "sha256": model.sha256,
        "in_place": model.in_place,
    }


def gguf_facts(header: Header) -> dict[str, Any]:
    """What the header says; None for what it leaves out. Raises BadGGUF for values of the wrong type."""
    layered = f"{header.architecture}.block_count" in header.metadata  # not in a file that is all vocabulary
    heads = header.per_layer("{arch}.attention.head_count", 0) if layered else ()
    kv_heads = header.per_layer("{arch}.attention.head_count_kv", max(heads)) if layered else ()
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    return {
        "format": f"GGUF {header.version}",
        "architecture": header.architecture,
        "type": header.get("general.type", str, None),
        "licence_in_file": header.get("general.license", str, None),
        "title": header.get("general.name", str, None),
        "parameters": header.parameters,
        "quantization": header.quantization,
        "tensors": len(header.tensors),
        "bytes_by_type": header.bytes_by_type,
        "context": header.get("{arch}.context_length", int, None),
        "layers": header.layers if layered else None,
        "embedding": header.get("{arch}.embedding_length", int, None),
        "heads": distinct(heads),
        "kv_heads": distinct(kv_heads),
        "vocabulary": tokens.length if isinstance(tokens, Array) else None,
        "tokenizer": header.get("tokenizer.ggml.model", str, None),
        "pre_tokenizer": header.get("tokenizer.ggml.pre", str, None),
        "chat_template": header.chat_template,
        "files_in_model": header.split_count,
    }


def onnx_facts(folder: Path) -> dict[str, Any]:
    """What an ONNX folder says; the graph is not read. Raises RequestError or UnsafeFile where it does not hold."""
    found = onnx_folder.read(folder)
    if found.task == "generation":
        return {"format": "ONNX", "task": found.task, "quantization": found.level or None} | decoder_facts(
            found
        )
    pooled = found.pooling + (", of length 1" if found.normalize else "")
    return {
        "format": "ONNX",
        "task": found.task,
        "quantization": found.level or None,
        "reads": found.max_tokens,
        "embedding": found.width or None,
        "pooling": pooled if found.task == "embedding" else None,
        "labels": list(found.labels),
        "problem": found.problem,
    }


def decoder_facts(folder: onnx_folder.OnnxFolder) -> dict[str, Any]:
    """A decoder's sizes; none of a folder made elsewhere, which no verb runs."""
    if not folder.ours:
        return {}
    found = onnx_folder.decoder_of(folder)
    return {
        "context": found.context,
        "layers": found.layers,
        "embedding": found.width,
        "heads": [found.heads],
        "kv_heads": [found.kv_heads],
        "vocabulary": found.vocabulary,
        "tokenizer": "tokenizer.json",
        "chat_template": found.chat_template or None,
    }


def distinct(counts: tuple[int, ...]) -> list[int]:
    """The different values of a per-layer figure, in the order of the layers; most models have one."""
    return list(dict.fromkeys(counts))


def listing(model: Model) -> dict[str, Any]:
    """Files and sizes of a folder, or of one file that is no GGUF; the architecture from its config.json."""
    folder = model.path if model.path.is_dir() else model.path.parent
    files = {file.relative_to(folder).as_posix(): file.stat().st_size for file in sorted(model.files)}
    facts: dict[str, Any] = {"format": file_format(files), "files": files}
    if "config.json" in files and model.path.is_dir():
        facts["architecture"] = checkpoint_architecture(model.path / "config.json")
    return facts


def file_format(names: dict[str, int]) -> str:
    if is_adapter(names):
        return "LoRA adapter of PEFT"
    for suffix, name in ((".safetensors", "safetensors checkpoint"), (".onnx", "ONNX"), (".gguf", "GGUF")):
        if any(file.endswith(suffix) for file in names):
            return name
    return "unknown"


def checkpoint_architecture(config: Path) -> str | None:
    """`architectures` of a config.json, which is not trusted to be JSON. Raises UnsafeFile when it is not."""
    try:
        with config.open("rb") as file:
            fields = json.loads(file.read(MAX_CONFIG))
        names = fields.get("architectures") or [fields.get("model_type")]
        return ", ".join(name for name in names if isinstance(name, str)) or None
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise UnsafeFile(f"{config} is not the JSON of a checkpoint", hint="download it again") from None


def summary(value: Any) -> Any:
    """A metadata value for JSON: arrays as their type and length, what JSON has no number for as text."""
    if isinstance(value, Array):
        return {"array_of": value.element_type, "length": value.length}
    if isinstance(value, tuple):
        if len(value) > MAX_SHOWN:
            return {"array_of": type(value[0]).__name__, "length": len(value)}
        return [summary(item) for item in value]
    if isinstance(value, str) and len(value) > MAX_TEXT:
        return {"text_of": len(value)}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Label and text of each line people see; lines with nothing to say are left out."""
    get, stated = facts.get, facts.get("licence_in_file")
    lines = [
        ("name", get("name")),
        ("file", str(get("path"))),
        ("size", size(facts["bytes"])),
        ("licence", get("licence") or (stated and f"{stated}, says the file")),
        ("from", get("ref") if get("ref") != str(get("path")) else "this path"),
        ("kept", "in place, by another program or by hand" if get("in_place") else "in edge's store"),
        ("sha256", get("sha256")),
        ("", " "),
        ("format", get("format")),
        ("type", get("type") != "model" and get("type")),
        ("title", get("title")),
        ("architecture", get("architecture")),
        ("task", get("task")),
        ("labels", get("labels") and listed(facts["labels"])),
        *(head_rows(facts) if "training" in facts else ()),
        ("reads", get("reads") and f"{facts['reads']:,} tokens of a text"),
        ("pooling", get("pooling")),
        ("parameters", get("parameters") and count(facts["parameters"])),
        ("quantization", get("quantization")),
        ("tensors", get("tensors") and f"{facts['tensors']}: {shares(facts['bytes_by_type'])}"),
        ("context", get("context") and f"{facts['context']:,} tokens in training"),
        ("layers", get("layers") and str(facts["layers"])),
        ("embedding", get("embedding") and f"{facts['embedding']:,} wide"),
        ("heads", get("heads") and several(facts["heads"])),
        ("kv heads", get("kv_heads") and several(facts["kv_heads"])),
        ("vocabulary", get("vocabulary") and f"{facts['vocabulary']:,} tokens"),
        ("tokenizer", " / ".join(filter(None, (get("tokenizer"), get("pre_tokenizer"))))),
        ("chat template", "tokenizer" in facts and template_line(facts["chat_template"])),
        (
            "parts",
            get("files_in_model", 1) > 1 and f"{facts['files_in_model']}, of which this is the first",
        ),
        *certificate_rows(facts),
        *((name, size(length)) for name, length in get("files", {}).items()),
    ]
    return [(label, text) for label, text in lines if text]


def count(number: int) -> str:
    """A number of weights as people say it: `134.5M`, `1.2B`."""
    for unit, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= unit:
            return f"{number / unit:.1f}{letter}"
    return str(number)


def shares(bytes_by_type: dict[str, int]) -> str:
    return ", ".join(f"{kind} {size(total)}" for kind, total in bytes_by_type.items())


def listed(labels: list[str]) -> str:
    """How many labels, and the first of them."""
    shown = ", ".join(label[:40] for label in labels[:12])
    return f"{len(labels)}: {shown}{', …' if len(labels) > 12 else ''}"


def several(counts: list[int]) -> str:
    return "/".join(map(str, counts))


def template_line(template: str | None) -> str:
    """Whether there is a chat template, and how it begins."""
    if not template or not template.strip():
        return "no"
    first = template.strip().splitlines()[0]
    return f"yes: {first[:60]}{'…' if len(template.strip()) > 60 else ''}"


def printable(text: str) -> str:
    """Text from the file with what would move the terminal's cursor written out."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
