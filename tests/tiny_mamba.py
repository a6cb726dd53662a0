"""A real recurrent model small enough to build in a test: one state per sequence, of which no end can be dropped."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from tiny import add_tokenizer, loudness


def tiny_mamba(path: Path, *, layers: int = 2, embd: int = 32, vocab: int = 320, ctx: int = 256) -> Path:
    """Write a Mamba model that llama.cpp loads and decodes; the same arguments give the same bytes."""
    inner, state, rank, kernel = 2 * embd, 8, 4, 4
    writer = gguf.GGUFWriter(path, "mamba")
    writer.add_name("tiny mamba")
    writer.add_context_length(ctx)
    writer.add_embedding_length(embd)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(layers)
    writer.add_ssm_conv_kernel(kernel)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(state)
    writer.add_ssm_time_step_rank(rank)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocab)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    add_tokenizer(writer, vocab, "smollm")

    random = np.random.default_rng(0)

    def add(name: str, *shape: int, scale: np.ndarray | float = 1.0) -> None:
        weights = random.standard_normal(shape) / np.sqrt(shape[-1]) * scale
        writer.add_tensor(name, weights.astype(np.float32))

    add("token_embd.weight", vocab, embd)
    for layer in range(layers):
        block = f"blk.{layer}"
        writer.add_tensor(f"{block}.attn_norm.weight", np.ones(embd, np.float32))
        add(f"{block}.ssm_in.weight", 2 * inner, embd)
        add(f"{block}.ssm_conv1d.weight", inner, kernel)
        add(f"{block}.ssm_conv1d.bias", inner)
        add(f"{block}.ssm_x.weight", rank + 2 * state, inner)
        add(f"{block}.ssm_dt.weight", inner, rank)
        add(f"{block}.ssm_dt.bias", inner)
        # As Mamba begins: -1, -2, … for the states of each channel
        decay = -np.tile(np.arange(1, state + 1, dtype=np.float32), (inner, 1))
        writer.add_tensor(f"{block}.ssm_a", decay)
        writer.add_tensor(f"{block}.ssm_d", np.ones(inner, np.float32))
        add(f"{block}.ssm_out.weight", embd, inner)
    writer.add_tensor("output_norm.weight", np.full(embd, 4.0, np.float32))
    add("output.weight", vocab, embd, scale=loudness(vocab))

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
