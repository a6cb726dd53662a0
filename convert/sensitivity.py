"""What each type would cost each tensor: predicted KL divergence from the whole model, in nats a token.

Each tensor is lowered alone, to two types, and the divergence measured on calibration text. Small divergences grow
with the square of what the tensor's outputs are off by (the second order of KL; its first is zero), so every other
type is scaled from these by the squared error that it gives to sampled rows of the tensor times sampled inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor

import numpy as np
from numpy.typing import NDArray

from .ggml_types import NUMBERS, dequantize
from .gguf import Entry, fits, row_bytes
from .gguf_source import GGUFSource
from .probe import Array, Probe
from .quantize import MAX_BUFFER, encode, quantizer
from .stream import Report

Float32 = NDArray[np.float32]

KINDS = (
    "F16",
    *("Q8_0", "Q6_K", "Q5_1", "Q5_K", "Q5_0", "Q4_1", "Q4_K", "Q4_0", "IQ4_NL", "NVFP4", "IQ4_XS", "MXFP4"),
    *("Q3_K", "IQ3_S", "IQ3_XXS", "Q2_K", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"),
)
ROWS = 64  # of a tensor, to tell the types' errors apart
PIECES = 8  # that rows are encoded in, by all threads
# Bits a weight of the types to measure: more, and the rounding of activations is all that is seen; fewer, and it is
# no longer small.
MOST, FEWEST = 5.0, 2.5
NOTHING = 1e-15  # nats a token: what rounding leaves of a tensor that changes nothing, such as one of zeros


def possible(entry: Entry, kinds: Sequence[str], weighed: bool) -> list[str]:
    """Those of the types that a tensor can have, with an importance or without one."""
    _, needs, _ = quantizer()
    return [kind for kind in kinds if fits(kind, entry.shape[-1]) and (weighed or not needs(NUMBERS[kind]))]


def measure(
    probe: Probe,
    whole: GGUFSource,
    entries: Mapping[str, Sequence[str]],
    importance: Mapping[str, Float32],
    around: float,
    chunks: slice,
    report: Report,
) -> dict[str, dict[str, float]]:
    """Predicted divergence by tensor and type. `entries` are the types to judge of each tensor.

    `around` is about how many bits a weight may take: types near it are measured.
    """
    found = {}
    for done, (name, kinds) in enumerate(entries.items()):
        report("measuring tensors", done, len(entries))
        errors = errors_of(whole, name, kinds, importance.get(name), probe)
        first = nearest(min(MOST, max(FEWEST, around)), errors)
        slopes = []
        for kind in dict.fromkeys((first, nearest(bits(first) - 1, errors))):
            probe.put(name, kind, encoded(whole, name, kind, importance.get(name), probe.pool))
            slopes.append(max(probe.divergence(chunks).mean(), NOTHING) / errors[kind])
            probe.restore([name])
        slope = float(np.exp(np.mean(np.log(slopes))))
        found[name] = {kind: slope * error for kind, error in errors.items()}
    report("measuring tensors", len(entries), len(entries))
    return found


def nearest(around: float, errors: Mapping[str, float]) -> str:
    """The type of about so many bits a weight, the better of two of one size."""
    return min(errors, key=lambda kind: (abs(bits(kind) - around), errors[kind]))


def bits(kind: str) -> float:
    """Bits a weight of a type."""
    return row_bytes(kind, 256) / 32


def encoded(whole: GGUFSource, name: str, kind: str, importance: Float32 | None, pool: Executor) -> Array:
    """A tensor's rows in a type, (rows, bytes of a row)."""
    parts = [encode(rows, kind, importance, pool, PIECES) for rows in whole.chunks(name, MAX_BUFFER)]
    return np.concatenate(parts)


def errors_of(
    whole: GGUFSource, name: str, kinds: Sequence[str], importance: Float32 | None, probe: Probe
) -> dict[str, float]:
    """Squared error of a tensor's products by type, as a share of the products' square.

    Where no inputs of it are known, of its weights, times the importance of their columns.
    """
    columns = whole.shape(name)[-1]
    total = int(np.prod(whole.shape(name)[:-1]))
    chosen = np.linspace(0, total - 1, min(total, ROWS)).astype(int)
    rows = np.concatenate([whole.read(name, at * columns, (at + 1) * columns) for at in chosen]).reshape(
        -1, columns
    )
    inputs = probe.inputs.get(name)

    def square(values: Float32) -> float:
        if inputs is not None:
            return float(np.square(values @ inputs.T).sum())
        squares = np.square(values)
        return float((squares if importance is None else squares * importance).sum())

    found, whole_square = {}, square(rows) or 1.0  # zeros are encoded without an error
    for kind in kinds:
        lower = np.empty_like(rows)
        blocks = encode(rows, kind, importance, probe.pool, PIECES)
        dequantize(blocks.reshape(-1), kind, lower.reshape(-1))
        found[kind] = max(square(lower - rows) / whole_square, 1e-12)
    return found
