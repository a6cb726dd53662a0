"""A real llama model small enough to build in a test: random weights, a byte-level tokenizer, ChatML."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # ids 0, 1, 2
MERGES = ("Ġ t", "h e", "i n", "Ġ a", "Ġt he", "e r", "l l", "o n", "Ġ w", "r e")


def tiny_llama(
    path: Path,
    *,
    layers: int = 2,
    embd: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    vocab: int = 320,
    ctx: int = 256,
    chat_template: str | None = CHATML,
    seed: int = 0,
    pre: str = "smollm",
) -> Path:
    """Write a model that llama.cpp loads and decodes; the same arguments give the same bytes.

    F32, 0.5 MB as it stands. What it says is printable ASCII and without end, unless sampled at a high
    temperature; `<|im_end|>` would end a turn. Ids from 269 to `vocab` are unused.
    """
    ffn, kv_width = 2 * embd, embd // heads * kv_heads
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_license("apache-2.0")
    writer.add_context_length(ctx)
    writer.add_embedding_length(embd)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(embd // heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocab)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    add_tokenizer(writer, vocab, pre)
    if chat_template is not None:
        writer.add_chat_template(chat_template)

    random = np.random.default_rng(seed)

    def add(name: str, rows: int, columns: int, loudness: np.ndarray | float = 1.0) -> None:
        # Divided so that activations stay near 1 through the layers.
        weights = random.standard_normal((rows, columns)) / np.sqrt(columns) * loudness
        writer.add_tensor(f"{name}.weight", weights.astype(np.float32))

    def add_norm(name: str, value: float = 1.0) -> None:
        writer.add_tensor(f"{name}.weight", np.full(embd, value, dtype=np.float32))

    add("token_embd", vocab, embd)
    for layer in range(layers):
        block = f"blk.{layer}"
        add_norm(f"{block}.attn_norm")
        add(f"{block}.attn_q", embd, embd)
        add(f"{block}.attn_k", kv_width, embd)
        add(f"{block}.attn_v", kv_width, embd)
        add(f"{block}.attn_output", embd, embd)
        add_norm(f"{block}.ffn_norm")
        add(f"{block}.ffn_gate", ffn, embd)
        add(f"{block}.ffn_up", ffn, embd)
        add(f"{block}.ffn_down", embd, ffn)
    add_norm("output_norm", 4.0)  # logits as far apart as a real model's
    add("output", vocab, embd, loudness(vocab))  # not tied, which would repeat the last token for ever

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tokenizer(writer: gguf.GGUFWriter, vocab: int, pre: str) -> None:
    """A GPT-2 style tokenizer: specials, one token a byte, ten merges, unused ones up to `vocab`."""
    tokens = [*SPECIALS, *byte_letters(), *(merge.replace(" ", "") for merge in MERGES)]
    unused = [f"<|unused{index}|>" for index in range(len(tokens), vocab)]
    kinds = [gguf.TokenType.CONTROL] * len(SPECIALS) + [gguf.TokenType.NORMAL] * (len(tokens) - len(SPECIALS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([*tokens, *unused])
    writer.add_token_types([*kinds, *[gguf.TokenType.UNUSED] * len(unused)])
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)


def loudness(vocab: int) -> np.ndarray:
    """A factor a token for its output row: only printable text is loud."""
    factors = np.full((vocab, 1), 0.1)
    first = len(SPECIALS)
    factors[first + 0x20 : first + 0x7F] = factors[first + 256 : first + 256 + len(MERGES)] = 1.0
    return factors


def byte_letters() -> list[str]:
    """GPT-2's printable letter for each byte, by byte: printable ones stand for themselves."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
