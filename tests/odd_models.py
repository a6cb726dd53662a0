"""Models that load and are no use for text: an encoder, and one without a tokenizer."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
NORMS = ("attn_output_norm", "layer_output_norm")


def encoder(path: Path, width: int = 32) -> Path:
    """A BERT of one layer, as sentence encoders are."""
    tokens = [*SPECIALS, *(f"\u2581{letter}" for letter in "abcdefghij"), *"abcdefghij"]
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(2 * width)
    writer.add_head_count(4)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_tokenizer_model("bert")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * 5 + [gguf.TokenType.NORMAL] * 20)
    writer.add_token_type_count(2)
    for kind, token in (("unk", 1), ("sep", 3), ("pad", 0), ("mask", 4), ("bos", 2), ("eos", 3)):
        getattr(writer, f"add_{kind}_token_id")(token)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, np.ones(shape, dtype=np.float32))

    add("token_embd.weight", len(tokens), width)
    add("position_embd.weight", 128, width)
    add("token_types.weight", 2, width)
    for name in ("token_embd_norm", *(f"blk.0.{norm}" for norm in NORMS)):
        add(f"{name}.weight", width)
        add(f"{name}.bias", width)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        add(f"blk.0.{name}.weight", width, width)
        add(f"blk.0.{name}.bias", width)
    add("blk.0.ffn_up.weight", 2 * width, width)
    add("blk.0.ffn_up.bias", 2 * width)
    add("blk.0.ffn_down.weight", width, 2 * width)
    add("blk.0.ffn_down.bias", width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def without_tokenizer(path: Path, monkeypatch: pytest.MonkeyPatch, *, said: bool) -> Path:
    """A llama whose header says that it has no tokenizer, or does not mention one."""
    monkeypatch.setattr(
        tiny,
        "add_tokenizer",
        lambda writer, vocab, pre: writer.add_tokenizer_model("no_vocab") if said else None,
    )
    return tiny.tiny_llama(path)
