"""How fast an ONNX folder that we wrote will run on this host, from its sizes and what was measured here.

Some rows take the sum of

    matrices   each layer's weights × what the level's matrices take for a weight and so many rows
    elements   what additions, norms, the activation and, at int8, the rounding go over
    attention  heads × positions looked at, and the elements of a head at each
    nodes      the operators' start

Source of the operators: convert/onnx/levels.py and convert/onnx/attention.py. Encoders run batches side by side, each
on one thread (edge/onnx/encoder.py); a decoder runs one on all threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge.onnx_folder import DecoderFolder, OnnxFolder, decoder_of, is_count
from edge.rates import AGAIN, Kernel, Rates
from edge.speed import Speed, Work, bound, encoding, fraction, near_threads, over_rows

BATCH = 512  # tokens of an encoder's batch (edge/tasks/stream.py)
# The model types whose layers are BERT's: four matrices of attention, two of the feed-forward, two norms
PLAIN = (
    *("albert", "bert", "camembert", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta"),
    "xlm-roberta-xl",
)
UNGATED = (
    "gpt2",
    "phi2",
    "starcoder2",
)  # architectures whose feed-forward has two matrices, the others three
KERNELS = {"fp16": "fp32"}  # ONNX Runtime widens it when it loads
BIASED = ("int4", "int8w")  # levels whose multiplication adds its bias
NODES = {"int8": 70}  # operators a layer, by level
FEW_NODES = 30
PER_OUTPUT = 5 / 8  # of a matrix's outputs or inputs a weight, times the measured width: half are 4 × as wide
PARTS = {"add", "gelu", "norm", "round", "score", "look", "node"}  # of which all is predicted


@dataclass(frozen=True)
class Sizes:
    """A model's sizes in elements. `matrices` of a feed-forward are 2, or 3 where it is gated."""

    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    head_size: int
    matrices: int = 2
    vocabulary: int = 0

    @property
    def attention_weights(self) -> int:
        """Of a layer's four matrices."""
        return 2 * self.width * self.head_size * (self.heads + self.kv_heads)

    @property
    def weights(self) -> int:
        """Of all layers' matrices, without the head."""
        return self.layers * (self.attention_weights + self.matrices * self.width * self.inner)

    @property
    def head_weights(self) -> int:
        return self.width * self.vocabulary


def predict(
    folder: OnnxFolder, rates: Rates, *, threads: int, depth: int = 0, prompt: int = BATCH
) -> tuple[Speed | None, str]:
    """The speed of a folder, or why it is not known.

    threads  of a decoder; of an encoder how many batches run side by side
    depth    tokens that a decoder knows before the one that it decodes; `prompt` are those of its prompt

    Raises UnsafeFile for a config.json that makes no sense.
    """
    if not folder.ours:
        return None, "a graph made elsewhere, whose operators are not known before it is loaded"
    if folder.task == "generation":
        sizes = of_decoder(decoder_of(folder))
        why = why_not(folder.level, rates)
        return (None, why) if why else (decoder(sizes, folder.level, rates, threads, depth, prompt), "")
    return of_config(folder.config, folder.level, folder.max_tokens, rates, workers=threads)


def of_config(
    config: Mapping[str, Any], level: str, most: int, rates: Rates, *, workers: int
) -> tuple[Speed | None, str]:
    """The speed of an encoder that a checkpoint's config.json describes, at a level; `most` tokens a text."""
    sizes = of_encoder(config)
    if sizes is None:
        kind = str(config.get("model_type", "it"))[:40]
        return None, f"ONNX Runtime was not measured with layers as {kind} has them"
    why = why_not(level, rates)
    if why:
        return None, why
    return encoder(sizes, level, rates, workers, most), ""


def why_not(level: str, rates: Rates) -> str:
    """Why nothing is predicted at a level; empty where it is."""
    if not rates.onnx or not parts_of(rates).keys() >= PARTS:
        return f"ONNX Runtime was not measured on this host; {AGAIN}"
    if KERNELS.get(level, level) not in {kernel.type for kernel in rates.onnx}:
        return f"ONNX Runtime was not measured at {level}"
    return ""


def of_encoder(config: Mapping[str, Any]) -> Sizes | None:
    """The sizes in a checkpoint's config.json; None for layers that are not BERT's."""
    if config.get("model_type") not in PLAIN:
        return None
    names = (
        ("num_hidden_layers", "n_layers"),
        ("hidden_size", "dim"),
        ("intermediate_size", "hidden_dim"),
        ("num_attention_heads", "n_heads"),
    )
    layers, width, inner, heads = (
        next((config[name] for name in either if is_count(config.get(name))), 0) for either in names
    )
    if not (layers and width and inner and heads):
        return None
    return Sizes(layers, width, inner, heads, heads, width // heads)


def of_decoder(said: DecoderFolder) -> Sizes:
    return Sizes(
        layers=said.layers,
        width=said.width,
        inner=said.inner,
        heads=said.heads,
        kv_heads=said.kv_heads,
        head_size=said.head_size,
        matrices=2 if said.architecture in UNGATED else 3,
        vocabulary=said.vocabulary,
    )


def encoder(sizes: Sizes, level: str, rates: Rates, workers: int, most: int) -> Speed:
    def seconds(texts: int, tokens: int) -> float:
        rows = texts * tokens
        return matrices(sizes, level, rates, 1, rows) + beside(sizes, level, rates, rows, rows * tokens)

    read = sizes.weights * bits_of(level, rates) / 8 / rates.peak_bandwidth
    return encoding(seconds, Work(2 * sizes.weights / peak(rates, workers), read), most, BATCH, workers)


def decoder(sizes: Sizes, level: str, rates: Rates, threads: int, depth: int, prompt: int) -> Speed:
    """Of one answer. Elements and attention of many rows are shared by the threads, those of one row are one's."""

    def seconds(rows: int, seen: int, among: int) -> float:
        head = sizes.head_weights * cost(level, rates, threads, 1)
        return (
            head
            + matrices(sizes, level, rates, threads, rows)
            + beside(sizes, level, rates, rows, seen) / among
        )

    prefill, step = seconds(prompt, prompt * prompt, threads), seconds(1, depth + 1, 1)
    read = (sizes.weights + sizes.head_weights) * bits_of(level, rates) / 8 / rates.peak_bandwidth
    return Speed(
        prefill_tps=prompt / prefill,
        decode_tps=1 / step,
        ttft_s=prefill,
        prompt_tokens=prompt,
        prefill_bound=bound(read, prefill),
        decode_bound=bound(read, step),
        prefill_fraction=fraction(read, 2 * prompt * sizes.weights / peak(rates, 1), prefill),
        decode_fraction=fraction(read, 2 * (sizes.weights + sizes.head_weights) / peak(rates, 1), step),
    )


def matrices(sizes: Sizes, level: str, rates: Rates, threads: int, rows: int) -> float:
    """Seconds of all layers' products. What int8's measured kernel rounds is counted with the elements instead."""
    return sizes.weights * cost(level, rates, threads, rows)


def cost(level: str, rates: Rates, threads: int, rows: int) -> float:
    """Seconds a weight for all rows, without int8's rounding: it goes by rows and columns, and wide matrices were
    measured, which have few of them for each weight."""
    kernels, factor = kernels_of(level, rates, threads, rows)
    found = factor * over_rows({kernel.rows: kernel.seconds for kernel in kernels}, rows)
    if level != "int8":
        return found
    part = parts_of(rates)
    share = PER_OUTPUT / kernels[0].width / (threads if rows > 1 else 1)
    return max(found - rows * share * (part["round"] + part["add"]), found / 2)


def kernels_of(level: str, rates: Rates, threads: int, rows: int) -> tuple[list[Kernel], float]:
    kind = KERNELS.get(level, level)
    of_level = [kernel for kernel in rates.onnx if kernel.type == kind]
    counts, factor = near_threads(rates, sorted({kernel.threads for kernel in of_level}), threads, rows)
    return [kernel for kernel in of_level if kernel.threads == counts], factor


def beside(sizes: Sizes, level: str, rates: Rates, rows: int, seen: int) -> float:
    """Seconds of all layers beside their products, by one thread, where rows look at `seen` positions in all."""
    part, inner = parts_of(rates), (sizes.matrices - 1) * sizes.inner
    width, joined = sizes.width, sizes.heads * sizes.head_size
    added = 2 * width + (0 if level in BIASED else 2 * width + inner)
    each = part["add"] * added + part["norm"] * 2 * width + part["gelu"] * sizes.inner
    if level == "int8":
        out = 2 * width + joined + 2 * sizes.kv_heads * sizes.head_size + inner
        each += part["round"] * (2 * width + joined + sizes.inner) + part["add"] * out
    looked = seen * sizes.heads * (part["score"] + sizes.head_size * part["look"])
    return sizes.layers * (rows * each + looked + NODES.get(level, FEW_NODES) * part["node"])


def parts_of(rates: Rates) -> dict[str, float]:
    return {part.name: part.seconds for part in rates.onnx_parts}


def bits_of(level: str, rates: Rates) -> float:
    kind = KERNELS.get(level, level)
    return next(kernel.bits for kernel in rates.onnx if kernel.type == kind)


def peak(rates: Rates, workers: int) -> float:
    """The most operations a second that any kernel reaches, ONNX Runtime's among them, or many of one thread do."""
    reached = (kernel.gops * (workers if kernel.threads == 1 else 1) for kernel in rates.onnx)
    return max(rates.peak_arithmetic, *(1e9 * gops for gops in reached))
