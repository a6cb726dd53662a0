"""Back from a GGUF header to what config.json says: the parts that several families share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edge.errors import ConversionError
from edge.gguf_header import Header

from .rope import Llama3Rope, Rope
from .weight import Array

Read = Callable[[str], Array]  # a tensor of the file by its GGUF name, as float32


def shapes(header: Header) -> dict[str, tuple[int, ...]]:
    """GGUF tensor name → shape, row length last."""
    return {tensor.name: tensor.shape[::-1] for tensor in header.tensors}


def decimal(value: float) -> float:
    """What was written before GGUF made it an f32: the shortest decimal that rounds to it, 1e-05 for 9.99…e-06."""
    return float(str(np.float32(value)))


def number(header: Header, key: str, default: float | None = None) -> float:
    """A float of the header as config.json would have it. Raises BadGGUF as `Header.get`."""
    return decimal(header.get(key, float) if default is None else header.get(key, float, default))


def same_in_all_layers(header: Header, key: str, default: int | None = None) -> int:
    """A count that may differ between layers in GGUF and not in config.json. Raises ConversionError where it does."""
    values = set(header.per_layer(key, default))
    if len(values) > 1:
        raise ConversionError(
            f"{key.replace('{arch}', header.architecture)} differs between layers",
            hint="config.json of this family has one for all",
        )
    return values.pop()


def vocabulary(header: Header) -> int:
    """Rows of the embedding. Raises ConversionError without one."""
    shape = shapes(header).get("token_embd.weight")
    if shape is None or len(shape) != 2:
        raise ConversionError("the file has no token_embd.weight", hint="it is no whole language model")
    return shape[0]


def without(header: Header, keys: Mapping[str, Any]) -> None:
    """Refuse a file with one of these keys set to something else than the value that means nothing."""
    for key, harmless in keys.items():
        name = key.replace("{arch}", header.architecture)
        if header.metadata.get(name, harmless) != harmless:
            raise ConversionError(
                f"{name} is {header.metadata[name]!r}", hint="this family has no place for it in config.json"
            )


def rope_fields(header: Header, read: Read, size: int) -> dict[str, Any]:
    """`rope_theta` and, where the rotations are stretched, `rope_scaling`; `size` of a head's elements rotate.

    Raises ConversionError for a scaling that is neither linear nor Llama 3's.
    """
    base = number(header, "{arch}.rope.freq_base", 10000.0)
    fields: dict[str, Any] = {"rope_theta": base}
    kind = header.get("{arch}.rope.scaling.type", str, "none")
    if "rope_freqs.weight" in shapes(header):
        stretch = llama3_rope(base, size, read("rope_freqs.weight"))
        fields["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": stretch.factor,
            "low_freq_factor": stretch.low_freq_factor,
            "high_freq_factor": stretch.high_freq_factor,
            "original_max_position_embeddings": stretch.original_context,
        }
    elif kind == "linear":
        factor = number(header, "{arch}.rope.scaling.factor", 1.0)
        fields["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    if kind not in ("none", "linear") or (kind == "linear" and "rope_freqs.weight" in shapes(header)):
        raise ConversionError(
            f"rope scaling {kind!r} is not known for this family", hint="linear and llama3 are"
        )
    return fields


def llama3_rope(base: float, size: int, divisors: Array) -> Llama3Rope:
    """The four numbers that give these divisors of the frequencies (size / 2,).

    The divisors fix all but a common factor of the last three, so the usual low 1 and high 4 are taken. Raises
    ConversionError where no numbers give the divisors, to 1e-5.
    """
    divisors = np.asarray(divisors, np.float64).reshape(-1)
    factor = decimal(float(divisors.max(initial=1.0)))
    if len(divisors) == size // 2 and factor > 1 and math.isfinite(factor) and divisors.min() >= 1:
        # between fast and slow, Rope.divisors solved for the context
        smooth = (1 / divisors - 1 / factor) / (1 - 1 / factor)
        between = (smooth > 1e-6) & (smooth < 1 - 1e-6)
        contexts = (2 * math.pi / Rope(base).unscaled(size) * (1 + 3 * smooth))[between]
        if len(contexts):
            found = Llama3Rope(factor, 1.0, 4.0, round(float(np.median(contexts))))
            if np.allclose(Rope(base, llama3=found).divisors(size), divisors, rtol=1e-5, atol=0):
                return found
    raise ConversionError(
        "rope_freqs.weight is not what Llama 3's formula gives",
        hint="config.json has no place for other divisors",
    )
