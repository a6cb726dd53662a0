"""A mixture of experts in GGUF: one layer of random weights."""

from pathlib import Path

import gguf
import numpy as np
from tiny import add_tokenizer


def mixture(path: Path, *, experts: int, used: int) -> Path:
    """A one-layer Mixtral of random weights."""
    width, inner, vocab = 64, 32, 320
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {
        "context_length": 256, "embedding_length": width, "block_count": 1, "feed_forward_length": inner,
        "attention.head_count": 4, "attention.head_count_kv": 4, "rope.dimension_count": 16,
        "expert_count": experts, "expert_used_count": used, "vocab_size": vocab,
    }.items():  # fmt: skip
        writer.add_uint32(f"llama.{key}", value)
    writer.add_layer_norm_rms_eps(1e-5)
    add_tokenizer(writer, vocab, "smollm")
    draw = np.random.default_rng(0)

    def add(name, *shape):
        values = draw.standard_normal(shape) / np.sqrt(shape[-1]) if len(shape) > 1 else np.ones(shape)
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))

    add("token_embd", vocab, width)
    add("output_norm", width)
    add("output", vocab, width)
    for name in ("attn_norm", "ffn_norm"):
        add(f"blk.0.{name}", width)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        add(f"blk.0.{name}", width, width)
    add("blk.0.ffn_gate_inp", experts, width)
    add("blk.0.ffn_gate_exps", experts, inner, width)
    add("blk.0.ffn_up_exps", experts, inner, width)
    add("blk.0.ffn_down_exps", experts, width, inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
