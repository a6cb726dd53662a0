"""One file form that a model could run in here, and what is known of it: memory, speed, quality, bits."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from edge import speed
from edge.errors import BadGGUF
from edge.evidence import Quality
from edge.gguf_header import TYPES, Header, Tensor
from edge.planner import TYPICAL_PROMPT
from edge.rates import Rates
from edge.speed import Speed

ANSWER = 128  # tokens of a typical answer
HERE, MAKE, PULL = "here", "to make", "to pull"
BITS = {name: 8 * size / elements for name, elements, size in TYPES.values()}
WIDTH = 2048  # of the matrices by which a file is judged that only its name is known of
# Levels of encoders that keep labels: others cost more than half a point of accuracy
FAITHFUL = (
    *("fp32", "fp16", "int8", "int8w"),
    *("f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_1", "q5_0"),
    "",  # a file made elsewhere that does not say it
)
ONNX = "onnx"  # before a level of it
ONNX_BITS = {"fp32": 32.0, "fp16": 16.0, "int8": 8.0, "int8w": 8.0, "int4": 4.5}
# The type of a level's matrices, where it is not the level's own name
MAIN = {"IQ3_M": "IQ3_S", "IQ3_XS": "IQ3_S", "IQ2_M": "IQ2_S"}


@dataclass(frozen=True)
class Candidate:
    """A file that is here, could be made or could be pulled; sizes in bytes.

    header      None for ONNX and for a file of which only name and size are known
    memory_bytes   predicted for the whole process
    ceiling     of what is or was made from a GGUF file: the type that each tensor had there, which bounds its quality
    is_source   the others are made from this one
    generates   it continues text, so that it has a decode rate
    blocked     why it cannot be picked, empty where it can
    note        what should be known of it beside
    speed       of ONNX, as it is predicted; None where it is not
    """

    artifact: str
    level: str
    bytes: int
    memory_bytes: int
    where: str
    header: Header | None = None
    qualities: tuple[Quality, ...] = ()
    ceiling: Mapping[str, str] = field(default_factory=dict)
    is_source: bool = False
    generates: bool = True
    blocked: str = ""
    note: str = ""
    speed: Speed | None = None

    @cached_property
    def types(self) -> Mapping[str, str]:
        """Tensor → type of each matrix; of a file known by its name, one that stands for all."""
        if self.header is None:
            kind = main_type(self.level)
            return {"all": kind} if kind else {}
        return {tensor.name: tensor.type for tensor in self.header.tensors if len(tensor.shape) > 1}

    @cached_property
    def bits(self) -> float:
        """Bits a weight over all matrices, no tensor counted with more than its ceiling; 0 where nothing is known."""
        if self.is_onnx:
            return ONNX_BITS.get(self.level.removeprefix(ONNX).strip(), 0.0)
        if self.header is None:
            return BITS[self.types["all"]] if self.types else 0.0
        matrices = [tensor for tensor in self.header.tensors if len(tensor.shape) > 1]
        total = sum(tensor.elements * self.bits_of(tensor.name) for tensor in matrices)
        return total / max(1, sum(tensor.elements for tensor in matrices))

    @cached_property
    def least_bits(self) -> float:
        """Bits a weight of the matrix that has the fewest; 0 where nothing is known."""
        return min((BITS.get(kind, 0.0) for kind in self.types.values()), default=0.0)

    @property
    def is_onnx(self) -> bool:
        return self.level.startswith(ONNX)

    @property
    def keeps_labels(self) -> bool:
        """Whether an encoder of this level answers as its source does."""
        return self.level.removeprefix(ONNX).strip().lower() in FAITHFUL

    @property
    def requantized_from(self) -> str:
        """The level of the GGUF file that our own conversion made it from; empty where it does not say so."""
        return self.header.get("edge.requantized_from", str, "") if self.header else ""

    def bits_of(self, tensor: str) -> float:
        """Bits a weight of one matrix that can tell something of the model."""
        kind = self.types[tensor]
        kinds = {kind, self.ceiling.get(tensor, main_type(self.requantized_from) or kind)}
        return min(BITS.get(kind, 0.0) for kind in kinds)


def surely_as_good(one: Candidate, other: Candidate) -> bool:
    """Whether no measurement is needed to say so: `other` is made from it, or the type of every matrix is the same or
    has at least a whole bit more."""
    if one.is_source and (other.where == MAKE or other.requantized_from == one.level):
        return True
    if one.header is None or other.header is None or one.types.keys() != other.types.keys():
        return False
    same_start = one.requantized_from in ("", other.requantized_from)  # else the same type has lost more
    return all(
        (same_start and kind == other.types[name]) or one.bits_of(name) >= other.bits_of(name) + 1
        for name, kind in one.types.items()
    )


def main_type(level: str) -> str:
    """The GGML type that most of a level's weights have ("Q4_K_M" → "Q4_K"), empty for what is no level."""
    level = level.upper()
    found = MAIN.get(level, level if level in BITS else re.sub(r"_(XS|S|M|L)\Z", "", level))
    return found if found in BITS else ""


def speed_of(one: Candidate, rates: Rates | None, workers: int = 1) -> Speed | None:
    """For a prompt of 512 tokens and what follows it, on the threads that were fastest; of an encoder, of so many
    batches side by side."""
    if rates is None:
        return None
    if one.header is None:
        return one.speed
    threads = rates.prefill_threads if one.generates else workers
    try:
        return speed.predict(
            one.header,
            rates,
            prefill_threads=threads,
            decode_threads=rates.decode_threads,
            depth=TYPICAL_PROMPT,
            prompt=TYPICAL_PROMPT,
        )
    except BadGGUF:
        return None


def seconds_of(one: Candidate, found: Speed | None, rates: Rates | None) -> float | None:
    """A prompt of 512 tokens and 128 of answer, or a token of an encoder's texts; for a file known by its name its
    matrices alone, which ranks files of one model. None where nothing was measured."""
    if found is not None:
        if found.decode_tps is None:  # texts come in batches
            return 1 / found.prefill_tps
        return found.ttft_s + (ANSWER / found.decode_tps if one.generates else 0)
    if rates is None or one.header is not None or not one.types:
        return None
    weights = 8 * one.bytes / BITS[one.types["all"]]
    each = type_seconds(one.types["all"], rates)
    return None if each is None else weights * each


def type_seconds(kind: str, rates: Rates) -> float | None:
    """What a weight of a type takes in a prompt of 512 tokens and 128 of answer; None where it was not measured."""
    if kind not in {kernel.type for kernel in rates.kernels}:
        return None
    matrix = Tensor("matrix", (WIDTH, WIDTH), kind, 0, 0)
    prompt = speed.cost(rates, matrix, rates.prefill_threads, TYPICAL_PROMPT)
    return prompt + ANSWER * speed.cost(rates, matrix, rates.decode_threads, 1)


def common_measure(candidates: Sequence[Candidate], wanted: str) -> str:
    """Base, text and tokens by which most candidates were measured, those of the level `wanted` among them if any way
    has them; empty where nothing was measured."""
    found: dict[str, tuple[bool, int, int]] = {}
    for one in candidates:
        for quality in one.qualities:
            known, count, tokens = found.get(quality.measure, (False, 0, quality.tokens))
            found[quality.measure] = (known or one.level == wanted, count + 1, tokens)
    return max(found, key=lambda measure: found[measure], default="")
