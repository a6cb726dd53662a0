"""How much memory an encoder's GGUF file will take, from its header alone.

An encoder keeps no cells, and has a context of one thread for each worker (edge/engine/encoder.py). Each of them holds
room for the outputs of a batch: its vectors and, though nobody reads them, a row of logits for every token
(llama.cpp src/llama-context.cpp, output_reserve). The file is mapped as a whole. The constants are our own
measurements of all-MiniLM-L6-v2 (five levels) and SST-2 bert-tiny (two), bench/LOG.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from edge.gguf_header import HF_TOKENIZER, Header
from edge.memory import HF_TOKEN_BYTES, MIB, NODE_BYTES, TOKEN_BYTES, Memory, inner_width, vocabulary, weights

BATCH = 256  # tokens of one graph at most, but for a longer text: edge.engine.encoder.TOKENS
PROCESS_BYTES = 48 * MIB  # a Python process with the command, NumPy, tokenizers and llama.cpp's library
WORKER_BYTES = 5 * MIB + MIB // 4  # a context's graph, a thread and its heap


def of_gguf(
    header: Header, context: int, workers: int, *, isa: Sequence[str] = (), available_bytes: int = 0
) -> Memory:
    """The memory one process needs to read texts of up to `context` tokens on so many workers."""
    tokens, width = max(BATCH, context), header.get("{arch}.embedding_length", int)
    inner, words = inner_width(header, width), vocabulary(header)
    # activations and residuals in f32, the mask of who sees whom, and rows as a kernel reads them
    compute = 4 * tokens * (inner + 2 * width) + 4 * tokens * tokens + 2 * tokens * inner
    entry = TOKEN_BYTES + (HF_TOKEN_BYTES if HF_TOKENIZER in header.metadata else 0)
    parts = (
        *weights(header, isa),
        0,
        workers * compute,
        workers * 4 * tokens * (words + width),
        PROCESS_BYTES + words * entry + len(header.tensors) * NODE_BYTES + workers * WORKER_BYTES,
    )
    return Memory(*parts, sum(parts), available_bytes)
