"""The folder of an ONNX model, and what it says of itself; the graph is not read here.

    NAME-LEVEL/  model.onnx (model.onnx.data where the weights exceed 2 GB), tokenizer.json, config.json, certificate.json

config.json is the checkpoint's, with an object `edge` that our conversion adds: {"level", "task", "labels", "problem",
"pooling", "normalize", "max_tokens", "width"}; a decoder's also has {"layers", "kv_heads", "head_size", "context",
"chat_template", "bos", "eos", "ends"}.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GRAPH, DATA, TOKENIZER, CONFIG, CERTIFICATE = (
    "model.onnx", "model.onnx.data", "tokenizer.json", "config.json", "certificate.json",
)  # fmt: skip


@dataclass(frozen=True)
class OnnxFolder:
    """What a folder says. `graph` is its model.onnx, or the only .onnx file in it; `bytes` are the graph's and its data's.

    task        embedding, classification, tokens or generation
    labels      a classifier's by number
    pooling     mean, cls, last or none; `normalize`: embeddings have length 1
    max_tokens  how many tokens it reads; `width` elements of an embedding
    ours        whether our conversion wrote it
    config      config.json as it stands, `edge` in it
    """

    path: Path
    graph: Path
    bytes: int
    level: str
    task: str
    labels: tuple[str, ...]
    problem: str | None
    pooling: str
    normalize: bool
    max_tokens: int
    width: int
    ours: bool
    config: Mapping[str, Any]


def is_folder(path: Path) -> bool:
    """Whether a path is such a folder: it has an .onnx file."""
    return path.is_dir() and any(path.glob("*.onnx"))


def read(path: Path) -> OnnxFolder:
    """What the folder at `path` says.

    Raises RequestError where a part is missing (no graph, several, no tokenizer.json), UnsafeFile for a config.json
    that makes no sense (no JSON, id2label that is not labels numbered from 0 on).
    """
    raise NotImplementedError
