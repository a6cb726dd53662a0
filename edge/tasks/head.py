"""A linear head trained on this device, and the encoder that carries it: one folder, one classifier.

    NAME/  head.json (labels, encoder, training figures), head.safetensors (weight, bias), encoder/ (an ONNX folder's
           files, or the GGUF file and its parts), model.json (the store's record)

safetensors: the length of a JSON header in 8 bytes, the header, the tensors' bytes (huggingface/safetensors, README).
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edge.errors import UnsafeFile
from edge.tasks.encoder import About, Array, Encoder, Tokens

HEAD, WEIGHTS, ENCODER = "head.json", "head.safetensors", "encoder"
MAX_JSON = 16 << 20  # bytes of a head.json: a hundred thousand labels
AGAIN = "train it again"


@dataclass(frozen=True)
class LinearHead:
    """`weight` (labels, width) and `bias` (labels,), float32; the temperature is in both.

    `facts` is the rest of head.json: encoder, training, versions.
    """

    labels: tuple[str, ...]
    weight: Array
    bias: Array
    facts: Mapping[str, Any]

    def logits(self, embeddings: Array) -> Array:
        """(texts, labels) from embeddings (texts, width), float32."""
        return np.asarray(embeddings @ self.weight.T + self.bias)


class HeadedEncoder:
    """An embedding encoder with a head behind it: an `Encoder` whose task is classification."""

    def __init__(self, encoder: Encoder, head: LinearHead, name: str, path: Path) -> None:
        """Raises UnsafeFile where the head was not trained on what this encoder gives."""
        if (encoder.about.task, encoder.about.width) != ("embedding", head.weight.shape[1]):
            raise UnsafeFile(
                f"the head of {name} reads embeddings of {head.weight.shape[1]} elements, and its encoder"
                f" gives {encoder.about.task} of {encoder.about.width}",
                hint=AGAIN,
            )
        self.encoder, self.head = encoder, head
        self.about: About = replace(
            encoder.about,
            name=name,
            path=path,
            task="classification",
            labels=head.labels,
            problem="single_label_classification",
        )

    def tokenize(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, spans: bool = False
    ) -> list[Tokens]:
        return self.encoder.tokenize(texts, pairs, spans=spans)

    def run(self, batch: Sequence[Tokens]) -> list[Array]:
        """Logits (labels,) of each text."""
        return list(self.head.logits(np.stack(self.encoder.run(batch)))) if batch else []

    def close(self) -> None:
        self.encoder.close()


def is_headed(path: Path) -> bool:
    """Whether a folder holds a trained head and its encoder."""
    return (path / HEAD).is_file() and (path / ENCODER).is_dir()


def encoder_of(path: Path) -> Path:
    """What is opened in a head's folder: the folder of its ONNX encoder, or its (first) GGUF file."""
    return min((path / ENCODER).glob("*.gguf"), default=path / ENCODER)


def read(path: Path) -> LinearHead:
    """The head in a folder. Raises UnsafeFile for files that do not hold together or hold no numbers."""
    facts = read_facts(path / HEAD)
    labels = facts.pop("labels", None)
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise UnsafeFile(f"{path / HEAD} has no list of labels", hint=AGAIN)
    if len(labels) < 2 or len(set(labels)) != len(labels):
        raise UnsafeFile(f"{path / HEAD} has labels that are too few or not different", hint=AGAIN)
    tensors = read_tensors(path / WEIGHTS)
    if set(tensors) != {"weight", "bias"} or (tensors["weight"].ndim, tensors["bias"].ndim) != (2, 1):
        raise UnsafeFile(f"{path / WEIGHTS} is not a weight and a bias", hint=AGAIN)
    weight, bias = tensors["weight"], tensors["bias"]
    if not len(weight) == len(bias) == len(labels) or not weight.shape[1]:
        raise UnsafeFile(f"{path / WEIGHTS} does not have a row for each of {len(labels)} labels", hint=AGAIN)
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise UnsafeFile(f"{path / WEIGHTS} holds values that are NaN or infinite", hint=AGAIN)
    return LinearHead(tuple(labels), weight, bias, facts)


def read_facts(path: Path) -> dict[str, Any]:
    """head.json. Raises UnsafeFile where it is no JSON object."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_JSON + 1)
        facts = json.loads(text) if len(text) <= MAX_JSON else None
        if not isinstance(facts, dict):
            raise ValueError("it is no object, or too long")
        json.dumps(facts, ensure_ascii=False).encode()  # half a surrogate pair could not be printed
    except (OSError, ValueError, RecursionError) as error:
        raise UnsafeFile(f"{path} cannot be read: {error}"[:200], hint=AGAIN) from None
    return facts


def write(folder: Path, head: LinearHead) -> list[Path]:
    """head.json and head.safetensors in `folder`; returns their paths. Each is on the disk when this returns."""
    facts = json.dumps({"labels": head.labels, **head.facts}, indent=2, ensure_ascii=False) + "\n"
    put(folder / HEAD, facts.encode())
    put(folder / WEIGHTS, tensor_bytes({"weight": head.weight, "bias": head.bias}))
    return [folder / HEAD, folder / WEIGHTS]


def put(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def tensor_bytes(tensors: Mapping[str, Array]) -> bytes:
    """A safetensors file of float32 tensors, its header padded to 8 bytes as that format advises."""
    header, offset = dict[str, Any](), 0
    blocks = {name: np.ascontiguousarray(values, "<f4") for name, values in tensors.items()}
    for name, block in blocks.items():
        ends = [offset, offset + block.nbytes]
        header[name] = {"dtype": "F32", "shape": list(block.shape), "data_offsets": ends}
        offset = ends[1]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(block.tobytes() for block in blocks.values())


def read_tensors(path: Path) -> dict[str, Array]:
    """The tensors of a file as `tensor_bytes` writes it. Raises UnsafeFile for any other."""
    try:
        raw = path.read_bytes()
        (length,) = struct.unpack_from("<Q", raw)
        header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
        found, offset = dict[str, Array](), 0
        for name, info in header.items():
            shape, (start, end) = info["shape"], info["data_offsets"]
            counted = all(type(size) is int and size > 0 for size in shape)
            if (
                info["dtype"] != "F32"
                or not counted
                or start != offset
                or end - start != 4 * math.prod(shape)
            ):
                raise ValueError(f"the place of {name[:40]!r} makes no sense")
            found[name] = np.frombuffer(data[start:end], "<f4").reshape(shape)
            offset = end
        if offset != len(data):
            raise ValueError(f"it has {len(data)} bytes of tensors, not {offset}")
    except (OSError, struct.error, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UnsafeFile(f"{path} is not a head's safetensors file ({error})"[:200], hint=AGAIN) from None
    return found
