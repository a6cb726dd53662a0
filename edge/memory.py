"""How much memory a GGUF model will take, from its header alone.

The peak resident size of a process that prefills a batch and decodes is the sum of

    weights   the file's tensors, mapped or read
    repacked  a copy of each matrix that this CPU's kernels want rearranged; without the mapping it is the only one
    kv        keys and values of every layer for the whole context, zeroed and so resident at once; recurrent states
    compute   what llama.cpp reserves for the graph of one batch, and the row of a batch as a kernel reads it
    logits    a row of them for each answer, and the candidates of a draw
    runtime   Python, llama.cpp's code, the tokenizer's tables, the graph's nodes, what is kept of each cell

Sources: llama.cpp src/llama-kv-cache*.cpp (cells, padding, window), src/llama-graph.cpp and ggml-alloc.c (what is alive
at once), ggml-cpu/repack.cpp (which types are rearranged on which CPU). `edge.engine.dry` asks llama.cpp itself, and a
test holds the formula to that. The constants of the runtime are our own measurements, bench/LOG.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edge.gguf_header import Array, Header, Tensor

MIB = 1 << 20
# Tokens of one decode call: as many activations are alive at once, and so long may Ctrl-C have to wait.
BATCH = 512
EMBEDDING = "token_embd.weight"
REPACKED_ROWS = 8  # llama.cpp rearranges so many rows of a matrix together
LOGITS_ROWS = 16  # rows of logits a step may want at least: one sequence's next token, and its guesses
CELL_PADDING = 256  # llama.cpp rounds a context up to this
# Measured: a Python process with the command, the template engine, NumPy and llama.cpp's library mapped.
PROCESS_BYTES = 46 * MIB
CANDIDATE_BYTES = 12  # llama_token_data
NODE_BYTES = 4000  # what llama.cpp and its graphs keep of a tensor
CELL_BYTES = 300  # a cell with its position and sequences, and a token of ours
TOKEN_BYTES = 152  # a vocabulary entry in llama.cpp's maps
HF_TOKEN_BYTES = 420  # one with its merges in the tokenizers library
MERGE_BYTES = 180  # a byte-pair merge in the same
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
    """Predicted bytes by purpose, and what there is. `mapped` weights are pages of the file, which other processes
    share and the kernel may drop; those that are read are not."""

    weights_bytes: int
    repacked_bytes: int
    kv_bytes: int
    compute_bytes: int
    logits_bytes: int
    runtime_bytes: int
    total_bytes: int
    available_bytes: int
    mapped: bool = True


@dataclass(frozen=True)
class Cache:
    """How keys and values are kept: for so many sequences, all in one pool of cells or `split`, a context each.

    type    one of KV_TYPES
    flash   flash attention, which keeps no scores of a whole batch and takes its mask in f16
    rows    rows of logits
    batch   tokens of one graph
    workers an encoder's, which compute side by side
    """

    sequences: int = 1
    split: bool = False
    type: str = "f16"
    flash: bool = True
    rows: int = 1
    batch: int = BATCH
    workers: int = 1

    @property
    def streams(self) -> int:
        """Buffers of cells: one a sequence where they are split."""
        return self.sequences if self.split else 1


ONE = Cache()


def predict(
    header: Header,
    context: int,
    cache: Cache = ONE,
    *,
    isa: Sequence[str] = (),
    mapped: bool = True,
    available_bytes: int = 0,
) -> Memory:
    """The memory one process needs for this model at this context (tokens). Raises BadGGUF for a header that
    lacks what the sum needs."""
    parts = (
        *weights(header, isa, mapped),
        kv_bytes(header, context, cache),
        compute_bytes(header, context, cache),
        logits_bytes(header, cache),
        runtime_bytes(header, context, cache),
    )
    return Memory(*parts, sum(parts), available_bytes, mapped)


def weights(header: Header, isa: Sequence[str], mapped: bool = True) -> tuple[int, int]:
    """Bytes of the tensors as they are in the file, and of the rearranged copies.

    A mapped file stays whole; one that is read leaves out what was rearranged, but for an embedding that is the output
    too, whose rows are looked up as well.
    """
    copies = {tensor.name: tensor.bytes for tensor in repacked(header, isa)}
    whole = sum(tensor.bytes for tensor in header.tensors)
    moved = 0 if mapped else sum(copies.values()) - copies.get(EMBEDDING, 0)
    return whole - moved, sum(copies.values())


def repacked(header: Header, isa: Sequence[str]) -> list[Tensor]:
    """The matrices that llama.cpp rearranges for its kernels on a CPU of these features."""
    kinds = repacked_types(isa)
    # The rows of an embedding are looked up, not multiplied, so it stays as it is, unless it is the output too.
    tied = not any(tensor.name == "output.weight" for tensor in header.tensors)
    return [
        tensor
        for tensor in header.tensors
        # three dimensions: the matrices of a mixture's experts
        if tensor.type in kinds
        and len(tensor.shape) in (2, 3)
        and tensor.shape[1] % REPACKED_ROWS == 0
        and (tied or tensor.name != EMBEDDING)
    ]


def best_mapped(header: Header, isa: Sequence[str]) -> bool:
    """Whether to map the file. Where most of it is rearranged, what was mapped is not read again."""
    moved = sum(tensor.bytes for tensor in repacked(header, isa) if tensor.name != EMBEDDING)
    return moved < sum(tensor.bytes for tensor in header.tensors) / 2


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
    if every := header.get("{arch}.full_attention_interval", int, 0):
        kv_heads = tuple(0 if (layer + 1) % every else count for layer, count in enumerate(kv_heads))
    elements = cache.streams * sum(
        cells * layer_heads * sum(head_sizes(header))
        for cells, layer_heads in zip(layer_cells(header, context, cache), kv_heads, strict=True)
    )
    size, block = KV_TYPES[cache.type]
    # Layers that keep a state have no heads of keys, or say where attention is (Qwen3-Next: every fourth layer); where
    # neither is said, both may be in each, as in Falcon-H1
    stateful = kv_heads.count(0) or len(kv_heads)
    return elements * size // block + stateful * cache.sequences * state_elements(header) * 4


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
    full, windowed = pad(context), window_cells(header, context, cache)
    return [windowed if has_window else full for has_window in windows(header)]


def windows(header: Header) -> tuple[bool, ...]:
    """Which layers look back a window only; where the header says nothing of it none, rather too much than too
    little."""
    pattern: Any = header.metadata.get(
        f"{header.architecture}.attention.sliding_window_pattern",
        FULL_ATTENTION_EVERY.get(header.architecture, 1),
    )
    if isinstance(pattern, int) and pattern > 0:
        pattern = tuple(layer % pattern < pattern - 1 for layer in range(header.layers))
    known = isinstance(pattern, tuple) and len(pattern) == header.layers
    if not known or not header.get("{arch}.attention.sliding_window", int, 0):
        return (False,) * header.layers
    return tuple(bool(has_window) for has_window in pattern)


def window_cells(header: Header, context: int, cache: Cache) -> int:
    """KV cells of a layer with a window in one stream."""
    window = header.get("{arch}.attention.sliding_window", int, 0)
    sequences = cache.sequences // cache.streams
    return min(pad(context), pad(window * sequences + cache.batch))


def pools(header: Header, context: int, cache: Cache) -> tuple[int, ...]:
    """Cells of one stream in each of llama.cpp's caches: one for the layers that look at everything, one for those
    with a window; none for what has no attention."""
    if not any(header.per_layer("{arch}.attention.head_count", default=0)):
        return ()
    windowed = (window_cells(header, context, cache),) if any(windows(header)) else ()
    return (pad(context), *windowed)


def compute_bytes(header: Header, context: int, cache: Cache = ONE) -> int:
    """What llama.cpp reserves for the graph of a batch, and the work buffer of its widest multiplication.

    Alive all the time are the inputs: masks, positions, cell numbers. Beside them the largest of what is alive in a
    layer's feed-forward (gate, up, product and the residuals, f32), in its attention (without flash attention with
    the scores of the batch), and at the end, with the logits. A batch's rows are shared out among split sequences,
    so mask and scores are of one stream's cells.
    """
    rows = min(cache.batch, pad(context) * cache.streams)
    width = header.get("{arch}.embedding_length", int)
    heads = max(header.per_layer("{arch}.attention.head_count", default=0))
    query = heads * head_sizes(header)[0] if heads else 0
    inner = inner_width(header, width)
    cells = pools(header, context, cache)
    inputs = rows * (8 + 16 * len(cells) + sum(cells) * (2 if cache.flash else 4))
    if KV_TYPES[cache.type][1] > 1:  # the rotations of keys and values before they are rounded
        inputs += len(cells) * sum(4 * size * size for size in head_sizes(header))
    feeding = 4 * rows * (3 * inner + 3 * width + max(width, query))
    attending = 4 * rows * (3 * width + 3 * query)
    if not cache.flash:
        inputs += 4 * rows * query  # what is cut up between the scores and the rest
        attending += 4 * rows * heads * max(cells, default=0)
    ending = 4 * (min(rows, max(cache.sequences, LOGITS_ROWS)) * vocabulary(header) + rows * width)
    return inputs + max(feeding, attending, ending) + 2 * rows * max(inner, width, query)


def inner_width(header: Header, width: int) -> int:
    """Elements of a row inside a feed-forward, in all the experts that a token has, or inside a recurrent layer."""
    inner = max(header.per_layer("{arch}.feed_forward_length", default=4 * width))
    expert = header.get("{arch}.expert_feed_forward_length", int, inner)
    used = header.get("{arch}.expert_used_count", int, 0)
    return max(inner, used * expert, 2 * header.get("{arch}.ssm.inner_size", int, 0))


def logits_bytes(header: Header, cache: Cache = ONE) -> int:
    """Rows of logits in f32, and the candidates of a draw, each a token with its logit and probability."""
    return vocabulary(header) * (4 * cache.rows + CANDIDATE_BYTES)


def runtime_bytes(header: Header, context: int, cache: Cache = ONE) -> int:
    """The interpreter with its libraries, llama.cpp's tables for the vocabulary and for the graph, and what it and
    we keep of each cell of the cache."""
    merges = header.metadata.get("tokenizer.ggml.merges")
    count = merges.length if isinstance(merges, Array) else 0
    tables = vocabulary(header) * TOKEN_BYTES + count * MERGE_BYTES + len(header.tensors) * NODE_BYTES
    return PROCESS_BYTES + tables + cache.streams * sum(pools(header, context, cache)) * CELL_BYTES


def vocabulary(header: Header) -> int:
    """Number of tokens the model knows; 0 where the file has no tokenizer."""
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    return tokens.length if isinstance(tokens, Array) else len(tokens) if isinstance(tokens, tuple) else 0


def pad(context: int) -> int:
    """`context` rounded up as llama.cpp does."""
    return -(-context // CELL_PADDING) * CELL_PADDING
