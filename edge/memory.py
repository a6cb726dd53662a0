"""How much memory a GGUF model will take, from its header alone.

The peak resident size of a process that prefills a batch and decodes is the sum of

    weights   the mapped file, plus a copy of each matrix that this CPU's kernels want rearranged
    kv        keys and values of every layer for the whole context, zeroed and so resident at once
    compute   the activations of one batch, the attention mask, one row of logits a sequence
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
# Measured: a Python process with the command, the template engine, NumPy and llama.cpp's library mapped.
PROCESS_BYTES = 51 * MIB
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
# Bytes of so many elements (ggml/src/ggml-common.h: a quantized block is its values and an f16 scale).
KV_TYPES = {"f16": (2, 1), "f32": (4, 1), "q8_0": (34, 32), "q4_0": (18, 32)}


@dataclass(frozen=True)
class Memory:
    """Predicted bytes by purpose, and what there is."""

    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    runtime_bytes: int
    total_bytes: int
    available_bytes: int


@dataclass(frozen=True)
class Cache:
    """How keys and values are kept: for so many sequences, all in one pool of cells or `split`, a context each.

    type    one of KV_TYPES
    flash   flash attention, which keeps no scores of a whole batch and takes its mask in f16
    rows    rows of logits
    """

    sequences: int = 1
    split: bool = False
    type: str = "f16"
    flash: bool = True
    rows: int = 1

    @property
    def streams(self) -> int:
        """Buffers of cells: one a sequence where they are split."""
        return self.sequences if self.split else 1


ONE = Cache()


def predict(
    header: Header, context: int, cache: Cache = ONE, *, isa: Sequence[str] = (), available_bytes: int = 0
) -> Memory:
    """The memory one process needs for this model at this context (tokens). Raises BadGGUF for a header that
    lacks what the sum needs."""
    parts = (
        weights_bytes(header, isa),
        kv_bytes(header, context, cache),
        compute_bytes(header, context, cache),
        runtime_bytes(header),
    )
    return Memory(*parts, sum(parts), available_bytes)


def weights_bytes(header: Header, isa: Sequence[str]) -> int:
    """The file as mapped, and the rearranged copies that stay beside it."""
    repacked = repacked_types(isa)
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


def repacked_types(isa: Sequence[str]) -> set[str]:
    """The types that llama.cpp rearranges for its kernels on a CPU of these features."""
    features = X86_REPACKED | ARM_REPACKED
    return {kind for feature, kinds in features.items() if feature in isa for kind in kinds}


def kv_bytes(header: Header, context: int, cache: Cache = ONE) -> int:
    """Keys and values, cells × heads × head size, over the layers; and the f32 states of recurrent layers.

    0 for an encoder, which has no cache.
    """
    if not has_cache(header):
        return 0
    heads = header.per_layer("{arch}.attention.head_count", default=0)
    kv_heads = header.per_layer("{arch}.attention.head_count_kv", default=heads[0])
    elements = cache.streams * sum(
        cells * layer_heads * sum(head_sizes(header))
        for cells, layer_heads in zip(layer_cells(header, context, cache), kv_heads, strict=True)
    )
    size, block = KV_TYPES[cache.type]
    return elements * size // block + kv_heads.count(0) * cache.sequences * state_elements(header) * 4


def head_sizes(header: Header) -> tuple[int, int]:
    """Elements of one head's key and of its value."""
    heads = header.per_layer("{arch}.attention.head_count", default=0)
    default = header.get("{arch}.embedding_length", int) // max(1, heads[0])
    lengths = (header.get(f"{{arch}}.attention.{name}_length", int, default) for name in ("key", "value"))
    key, value = lengths
    return key, value


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


def layer_cells(header: Header, context: int, cache: Cache = ONE) -> list[int]:
    """KV cells of each layer in one stream: the padded context, or, where a layer has a window, a window for each
    sequence of the stream and a batch."""
    full = pad(context)
    window = header.get("{arch}.attention.sliding_window", int, 0)
    windows = cache.sequences // cache.streams
    windowed = min(full, pad(window * windows + BATCH)) if window else full
    pattern = header.metadata.get(
        f"{header.architecture}.attention.sliding_window_pattern",
        FULL_ATTENTION_EVERY.get(header.architecture, 1),
    )
    if isinstance(pattern, int) and pattern > 0:
        pattern = tuple(layer % pattern < pattern - 1 for layer in range(header.layers))
    if not isinstance(pattern, tuple) or len(pattern) != header.layers:
        return [full] * header.layers  # rather too much than too little
    return [windowed if has_window else full for has_window in pattern]


def compute_bytes(header: Header, context: int, cache: Cache = ONE) -> int:
    """Activations of one batch: three of the feed-forward's width and four of the model's, f32; the mask for the
    whole context and for the window; without flash attention the scores of a batch in f32; the logits.

    A batch's rows are shared out among split sequences, so mask and scores are of one stream's cells.
    """
    width = header.get("{arch}.embedding_length", int)
    inner = max(header.per_layer("{arch}.feed_forward_length", default=4 * width))
    heads = max(header.per_layer("{arch}.attention.head_count", default=0))
    cells = layer_cells(header, context, cache)
    query = heads * header.get("{arch}.attention.key_length", int, width // max(1, heads))
    activations = BATCH * 4 * (max(3 * inner, 2 * query) + 4 * max(width, query))
    mask = sum(set(cells)) * BATCH * (2 if cache.flash else 4)
    scores = 0 if cache.flash else heads * max(cells) * BATCH * 4
    return activations + mask + scores + cache.rows * vocabulary(header) * 4


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
