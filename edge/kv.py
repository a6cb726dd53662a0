"""How keys and values are kept, and by how many rows a step computes: what is possible, with the reasons."""

from __future__ import annotations

from collections.abc import Sequence

from edge.errors import RequestError
from edge.gguf_header import Header
from edge.memory import KV_TYPES, Cache, head_sizes, repacked_types

MAX_SEQUENCES = 256  # llama.cpp src/llama-cparams.h, LLAMA_MAX_SEQ
DEFAULT = "f16"
CHOICES = ("f16", "q8_0", "q4_0")  # from the exact to the small, in which order they are tried
# Measured, bench/LOG.md, "keys and values in fewer bits".
COSTS = {
    "q8_0": "it prefills 2,000 tokens at 0.37 of f16's pace",
    "q4_0": "each value is rounded to 4 bits",
}
WITHOUT_FLASH = {"grok"}  # llama.cpp src/llama-context.cpp switches it off there
# How many rows at once a matrix of a type is multiplied with, where that order of sums is not the one of fewer rows.
# Measured on a CPU with AVX-512, bench/LOG.md, "the same text whatever else runs"; for ggml-cpu/tiled, its source.
ROWS = dict.fromkeys(("F32", "F16", "BF16"), 2)
REPACKED_ROWS = dict.fromkeys(("Q4_K", "Q2_K"), 4)
TILED = "Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_XS IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S"
TILED_ROWS = dict.fromkeys(TILED.split(), 8)


def caches(
    header: Header | None, sequences: int, parallel: int, *, rows: int, asked: str | None, smaller: bool
) -> tuple[Cache, ...]:
    """The ways to keep so many sequences, the best first: the type that is asked for, or f16 and, where `smaller`
    is of use, what takes less. `rows` of logits are kept at least.

    header is None for ONNX, whose cache is float32. Raises RequestError for a type that is not possible.
    """
    slots, split = max(sequences, parallel), parallel > 1
    rows = max(slots, rows)
    if header is None:
        if asked not in (None, "f32"):
            raise RequestError(
                f"KV of {asked} is not possible: ONNX Runtime keeps f32", hint="leave --kv out"
            )
        return (Cache(slots, split, "f32", rows=slots),)
    if asked is not None:
        if asked not in KV_TYPES:
            raise RequestError(f"KV of {asked!r} is not known", hint=f"give one of {', '.join(CHOICES)}")
        if why := impossible(header, asked):
            raise RequestError(f"KV of {asked} is not possible: {why}", hint="take --kv f16")
    kinds = (asked,) if asked else CHOICES if smaller else (DEFAULT,)
    flash = header.architecture not in WITHOUT_FLASH
    return tuple(
        Cache(slots, split, kind, flash, rows=rows) for kind in kinds if not impossible(header, kind)
    )


def check_counts(sequences: int, parallel: int) -> None:
    """Raise RequestError where so many sequences are not possible."""
    for count, what in ((sequences, "answers"), (parallel, "conversations at a time")):
        if not 1 <= count <= MAX_SEQUENCES:
            raise RequestError(f"{count} {what} is out of range", hint=f"give 1 to {MAX_SEQUENCES}")
    if sequences > parallel > 1:
        raise RequestError(
            f"{sequences} answers take as many slots, and {parallel} conversations at a time are asked for",
            hint=f"raise --parallel to {sequences}",
        )


def impossible(header: Header, kind: str) -> str:
    """Why a model cannot keep its keys and values in a type; empty where it can (llama.cpp src/llama-context.cpp)."""
    _, block = KV_TYPES[kind]
    if block == 1:
        return ""
    if header.architecture in WITHOUT_FLASH:
        return f"it takes flash attention, which llama.cpp has not for {header.architecture}"
    odd = next((size for size in head_sizes(header) if size % block), None)
    return f"its heads are {odd} wide, and {block} values make a block" if odd else ""


def flash(cache: Cache) -> bool | None:
    """Whether flash attention has to be on or off; None leaves it to llama.cpp."""
    if not cache.flash:
        return False
    return True if cache.split or cache.type in COSTS else None


def reasons(cache: Cache, context: int, *, asked: str | None, scoring: bool) -> tuple[str, ...]:
    """Why keys and values are kept so; nothing for what is usual."""
    if scoring:
        return ("KV f32, flash attention off: what stands beside a text must not move its scores",)
    found = []
    if cache.split:
        found.append(
            f"parallel {cache.sequences}: a KV cache of {context} tokens for each, as attention over one that all "
            "share would read, and sum, what the others wrote"
        )
    if asked is not None:
        found.append(f"KV {cache.type}: asked for")
    elif cache.type in COSTS:
        found.append(f"KV {cache.type}: what is more exact does not fit; {COSTS[cache.type]}")
    if cache.split and cache.flash:
        found.append("flash attention on: without it a text could change with what else is in its batch")
    return tuple(found)


def row_multiple(header: Header | None, isa: Sequence[str], on_cpu: bool) -> tuple[int, str]:
    """By how many rows a step must go so that a row's sums are the same in all, and why: of which types.

    On x86 as measured. Other CPUs' rearranged kernels are taken to compute by fours too, as they are named for it.
    """
    if header is None:
        return 1, ""
    if not on_cpu:
        return (
            1,
            "rows 1: a text may change with what else is in its batch, as the order of a GPU's sums is not known",
        )
    tied = not any(tensor.name == "output.weight" for tensor in header.tensors)
    matrices = [
        tensor
        for tensor in header.tensors
        if len(tensor.shape) > 1 and (tied or tensor.name != "token_embd.weight")
    ]
    x86 = "AVX2" in isa or "NEON" not in isa
    repacked = repacked_types(isa)
    found: dict[str, int] = {}
    for tensor in matrices:
        if tensor.type in repacked and tensor.shape[1] % 8 == 0:
            rows = REPACKED_ROWS.get(tensor.type, 1) if x86 else 4
        else:
            rows = max(ROWS.get(tensor.type, 1), TILED_ROWS.get(tensor.type, 1) if x86 else 1)
        found[tensor.type] = max(rows, found.get(tensor.type, 1))
    most = max(found.values(), default=1)
    kinds = ", ".join(sorted(kind for kind, rows in found.items() if rows == most))
    if most == 1:
        return 1, "rows 1: this CPU computes a row of this file's types alike in every batch"
    return most, (
        f"rows by {most}: {kinds} are summed in another order in fewer rows, so that a text does not depend on what "
        "else runs; one conversation alone is slower for it, and not with --parallel 1"
    )
