"""The formulas of `edge.memory` against llama.cpp's own dry allocation, over models of real shapes without weights."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from tiny import add_tokenizer, tiny_llama
from tiny_mamba import tiny_mamba

from edge import gguf_header
from edge.engine.dry import dry
from edge.errors import EngineError
from edge.memory import Cache, compute_bytes, inner_width, kv_bytes, pad

MIB = 1 << 20
ROUNDED = 0.011 * MIB  # llama.cpp writes hundredths, of the cache in two lines where there is a window
# width, feed-forward, layers, heads, KV heads, head size
SHAPES = {
    "llama": [(576, 1536, 3, 9, 3, 64), (512, 1280, 2, 8, 2, 64), (2048, 8192, 2, 32, 8, 64)],
    "qwen2": [(896, 4864, 2, 14, 2, 64)],
    "qwen3": [(1024, 3072, 2, 16, 8, 128)],
    "gemma3": [(640, 2048, 6, 4, 1, 256)],
}
CASES = [(family, shape) for family, shapes in SHAPES.items() for shape in shapes]


def hollow(path: Path, family: str, shape: tuple[int, ...], vocab: int = 2048) -> Path:
    """A GGUF of a family and of real dimensions whose weights are a hole in the file."""
    width, inner, layers, heads, kv_heads, head = shape
    writer = gguf.GGUFWriter(path, family)
    writer.add_context_length(32768)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_block_count(layers)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocab)
    if family == "gemma3":
        writer.add_sliding_window(512)
    add_tokenizer(writer, vocab, "smollm")

    def add(name: str, *dims: int) -> None:
        kind = np.float16 if len(dims) > 1 else np.float32
        size = int(np.prod(dims)) * np.dtype(kind).itemsize
        writer.add_tensor_info(f"{name}.weight", dims, np.dtype(kind), size)

    add("token_embd", vocab, width)
    add("output_norm", width)
    for block in (f"blk.{layer}" for layer in range(layers)):
        add(f"{block}.attn_norm", width)
        add(f"{block}.attn_q", heads * head, width)
        add(f"{block}.attn_k", kv_heads * head, width)
        add(f"{block}.attn_v", kv_heads * head, width)
        add(f"{block}.attn_output", width, heads * head)
        add(f"{block}.ffn_norm", width)
        add(f"{block}.ffn_gate", inner, width)
        add(f"{block}.ffn_up", inner, width)
        add(f"{block}.ffn_down", width, inner)
        if family in ("qwen3", "gemma3"):
            add(f"{block}.attn_q_norm", head)
            add(f"{block}.attn_k_norm", head)
        if family == "gemma3":
            add(f"{block}.post_attention_norm", width)
            add(f"{block}.post_ffw_norm", width)
        if family == "qwen2":
            for name, rows in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
                size = rows * head
                writer.add_tensor_info(f"{block}.attn_{name}.bias", (size,), np.dtype(np.float32), 4 * size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    tensors = gguf.GGUFWriter.ggml_pad
    elements = sum(tensors(info.nbytes, 32) for part in writer.tensors for info in part.values())
    with path.open("r+b") as file:
        file.truncate(tensors(path.stat().st_size, 32) + elements)
    return path


def caches():
    yield from (Cache(), Cache(4), Cache(4, split=True), Cache(batch=128))
    yield from (Cache(type="q8_0"), Cache(type="q4_0"), Cache(4, split=True, type="q8_0"))
    yield from (Cache(type="f32", flash=False), Cache(4, type="f32", flash=False))


def graph_bytes(header, context, cache):
    """Of the formula what llama.cpp reserves for the graph: all but the kernels' work buffer."""
    width = header.get("{arch}.embedding_length", int)
    heads = max(header.per_layer("{arch}.attention.head_count", default=0))
    query = heads * header.get("{arch}.attention.key_length", int, width // max(1, heads))
    rows = min(cache.batch, pad(context) * cache.streams)
    return compute_bytes(header, context, cache) - 2 * rows * max(inner_width(header, width), width, query)


@pytest.mark.parametrize(("family", "shape"), CASES)
def test_cache_and_graph_are_what_llama_cpp_reserves(tmp_path, family, shape):
    path = hollow(tmp_path / "hollow.gguf", family, shape)
    header = gguf_header.read(path)
    for cache in caches():
        for context in (256, 2048):
            said = dry(path, context, cache)
            where = f"{family} {shape} at {context} with {cache}"
            assert kv_bytes(header, context, cache) == pytest.approx(said.kv_bytes, abs=2 * ROUNDED), where
            ours = graph_bytes(header, context, cache)
            assert said.compute_bytes - ROUNDED <= ours <= 1.3 * said.compute_bytes, where


def test_a_file_that_llama_cpp_refuses_says_why(tmp_path):
    path = tiny_llama(tmp_path / "tiny.gguf")
    path.write_bytes(path.read_bytes()[:-4096])
    with pytest.raises(EngineError, match=r"cannot plan tiny\.gguf: .+"):
        dry(path, 256, Cache())


def test_a_recurrent_models_states_are_what_llama_cpp_reserves(tmp_path):
    path = tiny_mamba(tmp_path / "mamba.gguf", embd=256)
    header = gguf_header.read(path)
    for cache in (Cache(), Cache(8), Cache(8, split=True)):
        said = dry(path, 256, cache)
        assert kv_bytes(header, 256, cache) == pytest.approx(said.kv_bytes, abs=ROUNDED)
        assert said.compute_bytes - ROUNDED <= compute_bytes(header, 256, cache)
