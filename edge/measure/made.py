"""A model that is made to be timed: each of its layers in a type of its own."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge.measure.blocks import NUMBERS, size_of, weights

HEAD = 64
VOCABULARY = 256
ALIGNMENT = 32


@dataclass(frozen=True)
class Shape:
    """A layer's width, that of its feed-forward, and its heads of 64: of queries, of keys and values."""

    width: int
    inner: int
    heads: int
    kv_heads: int

    @property
    def attention_weights(self) -> int:
        """Weights of the four matrices around attention."""
        return 2 * self.width * HEAD * (self.heads + self.kv_heads)

    @property
    def inner_weights(self) -> int:
        """Weights of the feed-forward's three matrices."""
        return 3 * self.width * self.inner


def write(path: Path, kinds: Sequence[str], shape: Shape, context: int) -> Path:
    """Write a GGUF of the llama architecture without a vocabulary's words; a layer for each type.

    By hand, as gguf.GGUFWriter does not know every type that llama.cpp does. Format: ggml, docs/gguf.md.
    """
    metadata: dict[str, str | int | float] = {
        "general.architecture": "llama",
        "llama.context_length": context,
        "llama.embedding_length": shape.width,
        "llama.block_count": len(kinds),
        "llama.feed_forward_length": shape.inner,
        "llama.attention.head_count": shape.heads,
        "llama.attention.head_count_kv": shape.kv_heads,
        "llama.attention.key_length": HEAD,
        "llama.attention.value_length": HEAD,
        "llama.rope.dimension_count": HEAD,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.vocab_size": VOCABULARY,
        "tokenizer.ggml.model": "no_vocab",
    }
    tensors = list(tensors_of(kinds, shape))
    head = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata)), *map(entry, metadata.items())]
    offset = 0
    for name, kind, width, rows in tensors:
        head += [text(name), struct.pack("<IQQIQ", 2, width, rows, NUMBERS[kind], offset)]
        if rows == 1:  # of one dimension
            head[-1] = struct.pack("<IQIQ", 1, width, NUMBERS[kind], offset)
        offset += padded(size_of(kind, rows, width))
    with path.open("wb") as file:
        file.write(b"".join(head))
        file.write(bytes(-file.tell() % ALIGNMENT))
        for _, kind, width, rows in tensors:
            file.write(weights(kind, rows * width) if rows > 1 else np.ones(width, "<f4").tobytes())
            file.write(bytes(-file.tell() % ALIGNMENT))
    return path


def tensors_of(kinds: Sequence[str], shape: Shape) -> Iterator[tuple[str, str, int, int]]:
    """Name, type, length of a row and rows of each."""
    width, inner, queries, keys = shape.width, shape.inner, HEAD * shape.heads, HEAD * shape.kv_heads
    yield "token_embd.weight", "F32", width, VOCABULARY
    for layer, kind in enumerate(kinds):
        block = f"blk.{layer}"
        yield f"{block}.attn_norm.weight", "F32", width, 1
        yield f"{block}.attn_q.weight", kind, width, queries
        yield f"{block}.attn_k.weight", kind, width, keys
        yield f"{block}.attn_v.weight", kind, width, keys
        yield f"{block}.attn_output.weight", kind, queries, width
        yield f"{block}.ffn_norm.weight", "F32", width, 1
        yield f"{block}.ffn_gate.weight", kind, width, inner
        yield f"{block}.ffn_up.weight", kind, width, inner
        yield f"{block}.ffn_down.weight", kind, inner, width
    yield "output_norm.weight", "F32", width, 1


def entry(item: tuple[str, str | int | float]) -> bytes:
    """A key and its value: a text is of type 8, a u32 of 4, an f32 of 6."""
    key, value = item
    if isinstance(value, str):
        return text(key) + struct.pack("<I", 8) + text(value)
    return text(key) + (
        struct.pack("<If", 6, value) if isinstance(value, float) else struct.pack("<II", 4, value)
    )


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def padded(size: int) -> int:
    return size + -size % ALIGNMENT
