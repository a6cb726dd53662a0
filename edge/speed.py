"""How fast a GGUF model will run on this host, from its header and what was measured here.

A step of some rows takes the sum of

    matrices   each tensor's weights × what its type's kernel takes for a weight, at that width and so many rows
    layers     norms, rotations, additions, and the threads' meeting at each of them
    attention  positions looked at × elements of key and value, for heads of queries and for those of keys and values
    head       the matrix of the vocabulary, for the rows whose logits are wanted

and what only one step in all has: the graph's start. Source: llama.cpp src/models/llama.cpp and src/llama-graph.cpp for
which tensor is multiplied with which rows.

An encoder's texts go in batches, one a thread: every row through every matrix, and attention over the square of a
batch, whichever text is whose.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from edge.encoder_memory import BATCH as ENCODER_BATCH
from edge.gguf_header import Header, Tensor
from edge.memory import BATCH, has_cache, head_sizes, layer_cells, pad
from edge.rates import Kernel, Rates

# Looked up by token or kept for another use, never multiplied by a whole matrix
LOOKED_UP = (
    *("token_embd.weight", "per_layer_token_embd.weight", "position_embd.weight", "token_types.weight"),
    "rope_freqs.weight",
)
ONCE = (
    "cls.weight",
    "cls.output.weight",
)  # an encoder's head: multiplied once a text, which is next to nothing
RECURRENT = ("ssm.state_size", "wkv.head_size", "shortconv.l_cache")  # whose layers were not measured
TEXT = 128  # tokens of an encoder's text
HALF = 0.5


@dataclass(frozen=True)
class Speed:
    """What is predicted, and how far it is from the physical limit.

    prefill_tps, decode_tps      tokens a second; decode at the asked depth, all its sequences together. An encoder's
                                 prefill are texts of `prompt_tokens` in batches, and its decode is None
    ttft_s                       seconds until the first token of a prompt of `prompt_tokens`, or a text's encoding
    prefill_bound, decode_bound  "bandwidth" where reading the weights once at the measured bandwidth is the larger part
                                 of a step, else "arithmetic"
    prefill_fraction, decode_fraction   of the limit that binds: of the most bandwidth that was measured, or of the
                                 best arithmetic rate that any type reaches here
    """

    prefill_tps: float
    decode_tps: float | None
    ttft_s: float
    prompt_tokens: int
    prefill_bound: str
    decode_bound: str
    prefill_fraction: float
    decode_fraction: float | None


@dataclass(frozen=True)
class Work:
    """Seconds that an encoder's row would take at the best arithmetic, and its weights to be read once."""

    row: float
    read: float


def predict(
    header: Header,
    rates: Rates,
    *,
    prefill_threads: int,
    decode_threads: int,
    depth: int = 0,
    prompt: int = BATCH,
    rows: int = 1,
) -> Speed | None:
    """The speed of a model on the host that was measured, or None where a part of it was not: a type of tensor, or
    recurrent layers.

    prefill_threads   of an encoder, as many batches side by side
    depth   tokens that are known before the one that is decoded
    prompt  tokens of the prompt
    rows    sequences decoded at a time, each at that depth

    Raises BadGGUF for a header that lacks what the sum needs.
    """
    if any(header.get(f"{{arch}}.{name}", int, 0) for name in RECURRENT):
        return None
    types = {kernel.type for kernel in rates.kernels}
    multiplied = [tensor.type for tensor, _ in matrices(header)]
    if not multiplied or not types.issuperset(multiplied):
        return None
    if not has_cache(header):
        return encoder(header, rates, prefill_threads)
    prefill = prompt_seconds(header, rates, prefill_threads, prompt)
    step = step_seconds(header, rates, decode_threads, rows, (depth,) * rows, outputs=rows)
    read, reading = (bytes_of(header, count) / rates.peak_bandwidth for count in (rows, min(prompt, BATCH)))
    reading *= -(-prompt // BATCH)
    weights = [(tensor.elements * share, of_outputs(header, tensor)) for tensor, share in matrices(header)]
    inner = sum(count for count, of_output in weights if not of_output)
    whole = sum(count for count, _ in weights)
    return Speed(
        prefill_tps=prompt / prefill,
        decode_tps=rows / step,
        ttft_s=prefill,
        prompt_tokens=prompt,
        prefill_bound=bound(reading, prefill),
        decode_bound=bound(read, step),
        prefill_fraction=fraction(reading, 2 * prompt * inner / rates.peak_arithmetic, prefill),
        decode_fraction=fraction(read, 2 * rows * whole / rates.peak_arithmetic, step),
    )


def encoder(header: Header, rates: Rates, workers: int) -> Speed:
    """Texts side by side, each batch on one thread."""

    def seconds(texts: int, tokens: int) -> float:
        rows = texts * tokens
        return step_seconds(header, rates, 1, rows, (pad(rows) - 1,) * rows, outputs=0)

    weights = sum(tensor.elements * share for tensor, share in matrices(header))
    read = bytes_of(header, ENCODER_BATCH) / rates.peak_bandwidth
    work = Work(2 * weights / rates.peak_arithmetic, read)
    most = header.get("{arch}.context_length", int, TEXT)
    most = min(most, header.get("edge.max_tokens", int, most))
    return encoding(seconds, work, most, ENCODER_BATCH, workers)


def encoding(seconds: Callable[[int, int], float], work: Work, most: int, batch: int, workers: int) -> Speed:
    """The speed of an encoder, where so many texts of so many tokens take `seconds`; it reads `most` tokens of one."""
    tokens = max(1, min(TEXT, most))
    texts = max(1, batch // tokens)
    taken = seconds(texts, tokens)
    return Speed(
        prefill_tps=workers * texts * tokens / taken,
        decode_tps=None,
        ttft_s=seconds(1, tokens),
        prompt_tokens=tokens,
        prefill_bound=bound(work.read, taken),
        decode_bound="",
        prefill_fraction=fraction(work.read, workers * texts * tokens * work.row, taken),
        decode_fraction=None,
    )


def bound(reading: float, whole: float) -> str:
    return "bandwidth" if reading > HALF * whole else "arithmetic"


def fraction(reading: float, computing: float, whole: float) -> float:
    """How much of the limit that binds is reached, from the seconds that each would take at its measured best."""
    return (reading if reading > HALF * whole else computing) / whole


def prompt_seconds(header: Header, rates: Rates, threads: int, prompt: int) -> float:
    """Seconds for a prompt, cut into batches, until the logits of its last token."""
    total = 0.0
    for start in range(0, prompt, BATCH):
        rows = min(BATCH, prompt - start)
        last = start + rows == prompt
        # Attention of a batch goes by tiles: each row looks at all cells that any of them needs, hidden or not
        # (ggml/src/ggml-cpu/ops.cpp, ggml_compute_forward_flash_attn_ext_tiled)
        seen = (pad(start + rows) - 1,) * rows
        total += step_seconds(header, rates, threads, rows, seen, outputs=int(last))
    return total


def step_seconds(
    header: Header, rates: Rates, threads: int, rows: int, depths: Sequence[int], *, outputs: int
) -> float:
    """Seconds of one step: `rows` tokens, each at its depth, with the logits of `outputs` of them."""
    total = rates.step_seconds
    for tensor, _ in matrices(header):
        count = outputs if of_outputs(header, tensor) else rows
        if count:
            total += seconds_of(header, rates, tensor, threads, count)
    width = header.get("{arch}.embedding_length", int)
    total += header.layers * layer_seconds(rates, width, threads, rows)
    return total + attention_seconds(header, rates, threads, rows, depths)


def matrices(header: Header) -> Iterator[tuple[Tensor, float]]:
    """Each tensor that is multiplied with activations, and the share of it that a token takes: of a mixture's
    experts, those in use."""
    tied = has_cache(header) and not any(tensor.name == "output.weight" for tensor in header.tensors)
    experts = header.get("{arch}.expert_count", int, 0)
    used = header.get("{arch}.expert_used_count", int, 0)
    for tensor in header.tensors:
        if len(tensor.shape) < 2 or min(tensor.shape[:2]) == 1 or tensor.name in ONCE:
            continue
        if tensor.name in LOOKED_UP and not (tied and tensor.name == "token_embd.weight"):
            continue
        yield tensor, used / experts if experts and "_exps." in tensor.name else 1.0


def touched(header: Header, tensor: Tensor, rows: int) -> tuple[float, float]:
    """The share of a tensor's weights that so many rows are multiplied with, and the rows of each: of a mixture, the
    experts that any row is expected to choose, each row its own and evenly."""
    experts = header.get("{arch}.expert_count", int, 0)
    if not experts or "_exps." not in tensor.name:
        return 1.0, rows
    used = header.get("{arch}.expert_used_count", int, 0)
    if rows == 1:  # exactly: which rates are asked depends on it
        return used / experts, 1
    share = 1 - (1 - used / experts) ** rows
    return share, rows * used / (experts * share) if share else 0.0


def seconds_of(header: Header, rates: Rates, tensor: Tensor, threads: int, rows: int) -> float:
    """What a tensor's products with so many rows take."""
    share, each = touched(header, tensor, rows)
    return tensor.elements * share * cost(rates, tensor, threads, each) if share else 0.0


def bytes_of(header: Header, rows: int) -> float:
    """Bytes of weights that a step of so many rows reads."""
    return sum(tensor.bytes * touched(header, tensor, rows)[0] for tensor, _ in matrices(header))


def of_outputs(header: Header, tensor: Tensor) -> bool:
    """Whether it is multiplied only with the rows whose logits are wanted: llama.cpp drops the others before the last
    feed-forward."""
    if not has_cache(header):
        return False
    head = tensor.name in ("output.weight", "token_embd.weight")
    return head or tensor.name.startswith(f"blk.{header.layers - 1}.ffn_")


def positions(header: Header, heads: Sequence[int], depths: Sequence[int]) -> float:
    """Head × position × element over all layers, whose heads are given: what rows at these depths look at."""
    sizes = sum(head_sizes(header))
    window = header.get("{arch}.attention.sliding_window", int, 0)
    far = 1 << 30
    full = layer_cells(header, far)  # whether a layer has a window shows at a long context
    seen = sum(depth + 1 for depth in depths)
    near = sum(min(depth + 1, window) for depth in depths) if window else seen
    return float(
        sum(count * sizes * (near if cells < far else seen) for count, cells in zip(heads, full, strict=True))
    )


def cost(rates: Rates, tensor: Tensor, threads: int, rows: float) -> float:
    """Seconds a weight of the tensor takes for so many rows."""
    kernels = [kernel for kernel in rates.kernels if kernel.type == tensor.type]
    counts, factor = near_threads(rates, sorted({kernel.threads for kernel in kernels}), threads, rows)
    kernels = [kernel for kernel in kernels if kernel.threads == counts]
    return factor * over_widths(kernels, tensor.shape[0], rows)


def over_widths(kernels: Sequence[Kernel], width: int, rows: float) -> float:
    points = []
    for wide in sorted({kernel.width for kernel in kernels}):
        of_width = {kernel.rows: kernel.seconds for kernel in kernels if kernel.width == wide}
        points.append((math.log(wide), over_rows(of_width, rows)))
    return interpolated(points, math.log(width))


def over_rows(seconds: dict[int, float], rows: float) -> float:
    """Between counts that were measured linear; beyond the largest in proportion."""
    most = max(seconds)
    if rows >= most:
        return seconds[most] * rows / most
    return interpolated([(count, seconds[count]) for count in sorted(seconds)], rows)


def interpolated(points: Sequence[tuple[float, float]], x: float) -> float:
    """Linear between points in order of x, and the end's value beyond them."""
    if x <= points[0][0]:
        return points[0][1]
    for (left, low), (right, high) in itertools.pairwise(points):
        if x <= right:
            return low + (high - low) * (x - left) / (right - left)
    return points[-1][1]


def near_threads(rates: Rates, measured: Sequence[int], threads: int, rows: float) -> tuple[int, float]:
    """The measured count of threads to go by, and what its seconds are to be multiplied with for `threads`."""
    if threads in measured:
        return threads, 1.0
    nearest = min(measured, key=lambda count: abs(math.log(count / threads)))
    kind = "decode" if rows == 1 else "prefill"
    points = [
        (float(one.threads), getattr(one, kind)) for one in sorted(rates.scaling, key=lambda s: s.threads)
    ]
    speed = [max(interpolated(points, count), 1e-6) for count in (nearest, threads)]
    return nearest, speed[0] / speed[1]


def layer_seconds(rates: Rates, width: int, threads: int, rows: int) -> float:
    counts, factor = near_threads(rates, sorted({one.threads for one in rates.layers}), threads, rows)
    found = [one for one in rates.layers if one.threads == counts]
    points = []
    for wide in sorted({one.width for one in found}):
        points.append(
            (float(wide), over_rows({one.rows: one.seconds for one in found if one.width == wide}, rows))
        )
    most, last = points[-1]
    return factor * (last * width / most if width > most and rows > 1 else interpolated(points, width))


def attention_seconds(header: Header, rates: Rates, threads: int, rows: int, depths: Sequence[int]) -> float:
    heads = header.per_layer("{arch}.attention.head_count", default=0)
    kv_heads = header.per_layer("{arch}.attention.head_count_kv", default=max(heads, default=0))
    counts, factor = near_threads(rates, sorted({one.threads for one in rates.attention}), threads, rows)
    found = [one for one in rates.attention if one.threads == counts]
    nearest = min(found, key=lambda one: abs(math.log(one.rows / rows)))
    looks, kv_looks = positions(header, heads, depths), positions(header, kv_heads, depths)
    return factor * (looks * nearest.seconds + kv_looks * nearest.kv_seconds)
