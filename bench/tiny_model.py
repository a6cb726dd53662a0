"""A language model of random weights, small enough that the engine's own work is what takes time."""

from __future__ import annotations

from pathlib import Path

LAYERS, WIDTH, HEADS, FEED_FORWARD = 2, 64, 4, 128
SPECIALS = ("<s>", "</s>")


def tiny_model(path: Path, *, context: int) -> Path:
    """Write a llama in F32 with a token for each byte; what it says is printable ASCII. Always the same bytes."""
    import gguf
    import numpy as np

    tokens = [*SPECIALS, *byte_letters(), "th"]
    kinds = [gguf.TokenType.CONTROL] * len(SPECIALS) + [gguf.TokenType.NORMAL] * 257
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(context)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["t h"])  # none is refused
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(False)

    random = np.random.default_rng(0)
    printable = np.full((len(tokens), 1), 0.1, np.float32)
    printable[len(SPECIALS) + 0x20 : len(SPECIALS) + 0x7F] = 1
    printable[1] = 0.6  # so that some answers end by themselves

    def add(name: str, rows: int, columns: int) -> None:
        # Divided so that activations stay near 1 through the layers
        weights = (random.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)
        writer.add_tensor(f"{name}.weight", weights * printable if name == "output" else weights)

    def add_norm(name: str, value: float = 1.0) -> None:
        writer.add_tensor(f"{name}.weight", np.full(WIDTH, value, np.float32))

    add("token_embd", len(tokens), WIDTH)
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        add_norm(f"{block}.attn_norm")
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"{block}.{name}", WIDTH, WIDTH)
        add_norm(f"{block}.ffn_norm")
        add(f"{block}.ffn_gate", FEED_FORWARD, WIDTH)
        add(f"{block}.ffn_up", FEED_FORWARD, WIDTH)
        add(f"{block}.ffn_down", WIDTH, FEED_FORWARD)
    add_norm("output_norm", 4.0)  # logits as far apart as a real model's
    add("output", len(tokens), WIDTH)

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def byte_letters() -> list[str]:
    """GPT-2's printable letter for each byte, by byte: printable ones stand for themselves."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
