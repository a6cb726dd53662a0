"""What each type would cost each tensor: predicted KL divergence from the whole model, in nats a token.

Each tensor is lowered alone, to one type, and the divergence measured on calibration text. Small divergences grow
with the square of what the tensor's outputs are off by (the second order of KL; its first is zero), so every other
type is scaled from this one by the squared error that it gives to sampled rows of the tensor times sampled inputs.
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
from .quantize import MAX_BUFFER, encode_rows, importance_of, quantizer
from .stream import Report

Float32 = NDArray[np.float32]

KINDS = (
    "F16",
    *("Q8_0", "Q6_K", "Q5_1", "Q5_K", "Q5_0", "Q4_1", "Q4_K", "Q4_0", "IQ4_NL", "NVFP4", "IQ4_XS", "MXFP4"),
    *("Q3_K", "IQ3_S", "IQ3_XXS", "Q2_K", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"),
)
ROWS = 64  # of a tensor, to tell the types' errors apart
PIECES = 8  # that rows are encoded in, by all threads
# Bits a weight of the types to measure: of fewer, it is no longer small. And how many times the least error that any
# type has: of less, as of a type that the source had already, the rounding of activations is all that is seen.
MOST, FEWEST, SEEN = 5.0, 2.5, 5.0
UNLIKE = (
    "MXFP4",
    "NVFP4",
)  # their coarse scales shift products all one way, which costs other than chance does
BELOW = 0.75  # bits below what there are: what is chosen spreads around the budget, and most is lost at its lower end
ROUNDED = 32  # inputs of a product with quantized weights that llama.cpp rounds to 8 bits together; with K types 256
FLOATS = ("F32", "F16", "BF16")
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
    tokens: int,
    report: Report,
) -> dict[str, dict[str, float]]:
    """Predicted divergence by tensor and type. `entries` are the types to judge of each tensor.

    `around` is about how many bits a weight may take, by which the type to measure is chosen. It is measured on the
    first `tokens` of these chunks of the probe.
    """
    found = {}
    for done, (name, kinds) in enumerate(entries.items()):
        report("measuring tensors", done, len(entries))
        errors = errors_of(whole, name, kinds, importance.get(name), probe)
        kind = measurable(around, errors)
        probe.put(name, kind, encoded(whole, name, kind, importance.get(name), probe.pool))
        slope = max(probe.divergence(chunks, tokens).mean(), NOTHING) / errors[kind]
        probe.restore([name])
        found[name] = {kind: slope * error for kind, error in errors.items()}
    report("measuring tensors", len(entries), len(entries))
    return found


def measurable(around: float, errors: Mapping[str, float]) -> str:
    """The type to measure where so many bits a weight are to be had; the first of two of one size."""
    least = min((error for kind, error in errors.items() if kind not in FLOATS), default=0.0)
    seen = [
        kind
        for kind, error in errors.items()
        if bits(kind) <= MOST and error >= SEEN * least and kind not in UNLIKE
    ]
    near = min(MOST, max(FEWEST, around - BELOW))
    return min(seen or errors, key=lambda kind: abs(bits(kind) - near))


def bits(kind: str) -> float:
    """Bits a weight of a type."""
    return row_bytes(kind, 256) / 32


def encoded(whole: GGUFSource, name: str, kind: str, importance: Float32 | None, pool: Executor) -> Array:
    """A tensor's rows in a type, (rows, bytes of a row)."""
    parts, done, shape = [], 0, whole.shape(name)
    for rows in whole.chunks(name, MAX_BUFFER):
        numbers = np.arange(done, done + len(rows))
        parts.append(encode_rows(rows, numbers, shape, kind, importance, pool, PIECES))
        done += len(rows)
    return np.concatenate(parts)


def as_rounded(inputs: Float32) -> Float32:
    """Inputs (samples, columns) as a product with quantized weights takes them (ggml's quantize_row_q8_0)."""
    if inputs.shape[-1] % ROUNDED:
        return inputs
    blocks = inputs.reshape(-1, ROUNDED)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / 127
    rounded = np.rint(np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale > 0)) * scale
    return np.asarray(rounded.reshape(inputs.shape))


def errors_of(
    whole: GGUFSource, name: str, kinds: Sequence[str], importance: Float32 | None, probe: Probe
) -> dict[str, float]:
    """Squared error of a tensor's products by type, as a share of the products' square.

    Inputs are rounded where weights are quantized. Where no inputs of it are known, of its weights, times the
    importance of their columns.
    """
    shape = whole.shape(name)
    columns, total = shape[-1], int(np.prod(shape[:-1]))
    chosen = np.linspace(0, total - 1, min(total, ROWS)).astype(int)
    rows = np.concatenate([whole.read(name, at * columns, (at + 1) * columns) for at in chosen]).reshape(
        -1, columns
    )
    scale = 1.0 if importance is None else np.sqrt(importance_of(shape, chosen, importance))

    def lowered(kind: str) -> Float32:
        out = np.empty_like(rows)
        blocks = encode_rows(rows, chosen, shape, kind, importance, probe.pool, PIECES)
        dequantize(blocks.reshape(-1), kind, out.reshape(-1))
        return out

    def products(values: Float32, inputs: Float32 | None) -> Float32:
        return values * scale if inputs is None else np.asarray(values @ inputs.T)

    inputs = probe.inputs.get(name)
    rounded = None if inputs is None else as_rounded(inputs)
    exact, found = products(rows, inputs), {}
    square = float(np.square(exact).sum()) or 1.0  # zeros are encoded without an error
    for kind in kinds:
        given = products(lowered(kind), inputs if kind in FLOATS else rounded)
        found[kind] = max(float(np.square(given - exact).sum()) / square, 1e-12)
    return found
