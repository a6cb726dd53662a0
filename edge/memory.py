"""How much memory a GGUF model will take, from its header alone.

The peak resident size of a process that prefills a batch and decodes is the sum of

    weights   the mapped file, plus a copy of each matrix that this CPU's kernels want rearranged
    kv        keys and values of every layer for the whole context, in f16, zeroed and so resident at once
    compute   the activations of one batch, the attention mask, one row of logits an answer
    runtime   Python, llama.cpp's code, and the tokenizer's tables

Sources: llama.cpp src/llama-kv-cache*.cpp (cells, padding, window), ggml-cpu/repack.cpp (which types are
rearranged on which CPU), and our own measurements, bench/LOG.md, for the four constants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge.gguf_header import Array, Header

MIB = 1 << 20
# Tokens of one decode call: as many activations are alive at once, and so long may Ctrl-C have to wait.
BATCH = 512
CELL_PADDING = 256  # llama.cpp rounds a context up to this
# Measured: a Python process with the command, the template engine and llama.cpp's library mapped.
PROCESS_BYTES = 38 * MIB
TOKEN_BYTES = 160  # a vocabulary entry in llama.cpp's maps
MERGE_BYTES = 130  # a byte-pair merge in the same
# Every how many layers one looks at the whole context, where the header does not say
# (llama.cpp src/models/*.cpp, load_swa_pattern).
FULL_ATTENTION_EVERY = {"gemma2": 2, "gemma3": 6, "gemma3n": 5, "cohere2": 4, "exaone4": 4, "gpt-oss": 2}
# What sees its whole text at once, and keeps nothing of it (llama.cpp src/llama-model.cpp, create_memory);
# so do all whose name has `bert`.
WITHOUT_CACHE = {"gemma-embedding", "wavtokenizer-dec", "dream", "llada", "llada-moe", "rnd1"}
X86_REPACKED = {"AVX2": {"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"}, "AVX-512": {"Q2_K"}}
ARM_REPACKED = {"dotprod": {"Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "IQ4_NL", "MXFP4"}}


@dataclass(frozen=True)
class Memory:
    """Predicted bytes by purpose, and what there is."""

    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    runtime_bytes: int
    total_bytes: int
    available_bytes: int


def predict(
    header: Header, context: int, *, sequences: int = 1, isa: Sequence[str] = (), available_bytes: int = 0
) -> Memory:
    """The memory one process needs for this model at this context (tokens). Raises BadGGUF for a header that
    lacks what the sum needs."""
    parts = (
        weights_bytes(header, isa),
        kv_bytes(header, context, sequences),
        compute_bytes(header, context, sequences),
        runtime_bytes(header),
    )
    return Memory(*parts, sum(parts), available_bytes)


def weights_bytes(header: Header, isa: Sequence[str]) -> int:
    """The file as mapped, and the rearranged copies that stay beside it."""
    repacked = {
        kind for feature, kinds in (X86_REPACKED | ARM_REPACKED).items() if feature in isa for kind in kinds
    }
    # The rows of an embedding are looked up, not multiplied, so it stays as it is, unless it is the output too.
    tied = not any(tensor.name == "output.weight" for tensor in header.tensors)
    copies = sum(
        tensor.bytes
        for tensor in header.tensors
        # three dimensions: the matrices of a mixture's experts
        if tensor.type in repacked
        and len(tensor.shape) in (2, 3)
        and (tied or tensor.name != "token_embd.weight")
    )
    return header.file_bytes + copies


def kv_bytes(header: Header, context: int, sequences: int = 1) -> int:
    """f16 keys and values, cells × heads × head size, over the layers; and the f32 states of recurrent layers.

    0 for an encoder, which has no cache.
    """
    if not has_cache(header):
        return 0
    heads = header.per_layer("{arch}.attention.head_count", default=0)
    kv_heads = header.per_layer("{arch}.attention.head_count_kv", default=heads[0])
    default_head = header.get("{arch}.embedding_length", int) // max(1, heads[0])
    head_size = header.get("{arch}.attention.key_length", int, default_head)
    head_size += header.get("{arch}.attention.value_length", int, default_head)
    keys_and_values = sum(
        cells * layer_heads * head_size * 2
        for cells, layer_heads in zip(layer_cells(header, context, sequences), kv_heads, strict=True)
    )
    return keys_and_values + kv_heads.count(0) * sequences * state_elements(header) * 4


def has_cache(header: Header) -> bool:
    """Whether llama.cpp opens a KV cache for the architecture: encoders and diffusion models have none."""
    return "bert" not in header.architecture and header.architecture not in WITHOUT_CACHE


def state_elements(header: Header) -> int:
    """What one recurrent layer remembers of one sequence (llama.cpp src/llama-hparams.cpp, n_embd_r and n_embd_s)."""
    width = header.get("{arch}.embedding_length", int)
    inner, state, groups, kernel = (
        header.get(f"{{arch}}.ssm.{name}", int, 0)
        for name in ("inner_size", "state_size", "group_count", "conv_kernel")
    )
    mamba = state * inner + max(0, kernel - 1) * (inner + 2 * groups * state)
    rwkv = width * header.get("{arch}.wkv.head_size", int, 0)
    shift = width * header.get("{arch}.token_shift_count", int, 2 if rwkv else 0)
    convolution = width * max(0, header.get("{arch}.shortconv.l_cache", int, 0) - 1)
    return mamba + rwkv + shift + convolution


def layer_cells(header: Header, context: int, sequences: int = 1) -> list[int]:
    """KV cells of each layer: the padded context, or a window a sequence and a batch where a layer has a window."""
    full = pad(context)
    window = header.get("{arch}.attention.sliding_window", int, 0)
    windowed = min(full, pad(window * sequences + BATCH)) if window else full
    pattern = header.metadata.get(
        f"{header.architecture}.attention.sliding_window_pattern",
        FULL_ATTENTION_EVERY.get(header.architecture, 1),
    )
    if isinstance(pattern, int) and pattern > 0:
        pattern = tuple(layer % pattern < pattern - 1 for layer in range(header.layers))
    if not isinstance(pattern, tuple) or len(pattern) != header.layers:
        return [full] * header.layers  # rather too much than too little
    return [windowed if has_window else full for has_window in pattern]


def compute_bytes(header: Header, context: int, sequences: int) -> int:
    """Activations of one batch: three of the feed-forward's width and four of the model's, f32; the mask, f16,
    for the whole context and for the window; the logits."""
    width = header.get("{arch}.embedding_length", int)
    inner = max(header.per_layer("{arch}.feed_forward_length", default=4 * width))
    heads, cells = (
        max(header.per_layer("{arch}.attention.head_count", default=0)),
        layer_cells(header, context, sequences),
    )
    query = heads * header.get("{arch}.attention.key_length", int, width // max(1, heads))
    activations = BATCH * 4 * (max(3 * inner, 2 * query) + 4 * max(width, query))
    mask = sum(set(cells)) * BATCH * 2
    return activations + mask + sequences * vocabulary(header) * 4


def runtime_bytes(header: Header) -> int:
    """The interpreter with its libraries, and llama.cpp's tables for the vocabulary."""
    merges = header.metadata.get("tokenizer.ggml.merges")
    count = merges.length if isinstance(merges, Array) else 0
    return PROCESS_BYTES + vocabulary(header) * TOKEN_BYTES + count * MERGE_BYTES


def vocabulary(header: Header) -> int:
    """Number of tokens the model knows; 0 where the file has no tokenizer."""
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    return tokens.length if isinstance(tokens, Array) else len(tokens) if isinstance(tokens, tuple) else 0


def pad(context: int) -> int:
    """`context` rounded up as llama.cpp does."""
    return -(-context // CELL_PADDING) * CELL_PADDING
