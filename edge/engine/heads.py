"""A head that llama.cpp does not compute: kept in a file's metadata, applied by NumPy to what llama.cpp gives.

Its weights are arrays of f32 under `edge.head.dense.weight`, `.dense.bias`, `.output.weight`, `.output.bias`, rows
after one another as the checkpoint has them; `edge.head.activation` names the function between the two layers. The
loader refuses tensors that it does not know; keys that it does not know it leaves alone, and quantizing keeps them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge import gguf_header
from edge.errors import BadGGUF

Array = NDArray[Any]

PREFIX = "edge.head"
ACTIVATION = f"{PREFIX}.activation"
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"relu": lambda x: np.maximum(x, 0), "tanh": np.tanh}
AGAIN = "convert it again"


@dataclass(frozen=True)
class Head:
    """`dense` (width, width) and `output` (labels, width), float32, with their biases; `dense` may be absent."""

    output: Array
    output_bias: Array
    dense: Array | None = None
    dense_bias: Array | None = None
    activation: str | None = None


def key(part: str, kind: str) -> str:
    """The metadata key of a part (`dense`, `output`), `kind` being `weight` or `bias`."""
    return f"{PREFIX}.{part}.{kind}"


def fields(tensors: Mapping[str, Array], activation: str | None) -> dict[str, Any]:
    """The metadata keys for a head's tensors by their key, float32."""
    written: dict[str, Any] = {name: values.ravel().tolist() for name, values in tensors.items()}
    return written | ({ACTIVATION: activation} if activation else {})


def read(path: Path) -> Head | None:
    """The head in a file, None where there is none. Raises BadGGUF for one that is damaged."""
    header = gguf_header.read(path)
    if key("output", "weight") not in header.metadata:
        return None
    width = header.get("{arch}.embedding_length", int)
    activation = header.get(ACTIVATION, str, None)
    if activation is not None and activation not in ACTIVATIONS:
        raise BadGGUF(f"{ACTIVATION} is {activation[:40]!r}", hint=f"known are {', '.join(ACTIVATIONS)}")
    output, output_bias = layer(path, "output", width)
    if key("dense", "weight") not in header.metadata:
        return Head(output, output_bias)
    dense, dense_bias = layer(path, "dense", width)
    if len(dense_bias) != width:
        raise BadGGUF(f"{key('dense', 'bias')} has {len(dense_bias)} elements, not {width}", hint=AGAIN)
    return Head(output, output_bias, dense, dense_bias, activation)


def layer(path: Path, part: str, width: int) -> tuple[Array, Array]:
    """A part's weight (rows, width) and bias (rows,). Raises BadGGUF where they do not fit or are not finite."""
    weight, bias = (array(path, key(part, kind)) for kind in ("weight", "bias"))
    if not len(bias) or weight.size != len(bias) * width:
        raise BadGGUF(
            f"{key(part, 'weight')} has {weight.size} elements, not {len(bias)} rows of {width}", hint=AGAIN
        )
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise BadGGUF(f"{PREFIX}.{part} holds values that are NaN or infinite", hint=AGAIN)
    return weight.reshape(len(bias), width), bias


def array(path: Path, name: str) -> Array:
    """An array of the metadata, float32. Raises BadGGUF where it is none of numbers."""
    values = gguf_header.elements(path, name)
    if not all(isinstance(value, int | float) for value in values):
        raise BadGGUF(f"{name} holds texts, not numbers", hint=AGAIN)
    return np.array(values, np.float32)


def apply(head: Head, hidden: Array) -> Array:
    """Logits (…, labels) from hidden states (…, width): of the first token, or of each."""
    if head.dense is not None and head.dense_bias is not None:
        hidden = hidden @ head.dense.T + head.dense_bias
        if head.activation:
            hidden = ACTIVATIONS[head.activation](hidden)
    return np.asarray(hidden @ head.output.T + head.output_bias)
