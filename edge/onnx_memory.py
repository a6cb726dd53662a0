"""How much memory an ONNX folder will take, from its config.json and the sizes of its files.

The peak resident size of a process that prefills a batch and decodes is the sum of

    weights   the files, mapped or read
    repacked  what ONNX Runtime keeps beside them rearranged for its kernels
    kv        keys and values of every layer for the whole context, in float32; resident as they are filled
    compute   the activations of one batch, the scores of attention
    logits    one row an answer, and the candidates of a draw
    runtime   Python, ONNX Runtime's code, llama.cpp's for its samplers, and the tokenizer's tables

The factors are our own measurements, bench/LOG.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge.memory import BATCH, CANDIDATE_BYTES, HF_TOKEN_BYTES, MIB, Memory
from edge.onnx_folder import DecoderFolder, OnnxFolder

# A Python process with the command, the template engine, both libraries and an open session; measured of a 20 M llama
PROCESS_BYTES = 82 * MIB
# Resident bytes a byte of the files: mapped, and rearranged copies; half is widened to float32
MAPPED = {"fp32": 1.0, "fp16": 2.05, "int8": 1.0, "int8w": 1.25, "int4": 1.4}
READ = 1.8  # of weights inside model.onnx, whose bytes and copies stay
# Encoders, measured of all-MiniLM-L6-v2 and SST-2 bert-tiny: the process, and what a session keeps once it has run.
# The process took 69.5 MiB, and up to 2 more in the first run of an installation, which compiles its modules.
ENCODER_BYTES, RUN_BYTES = 72 * MIB, MIB + MIB // 4
TOKENS = 512  # of a batch, but for a longer text: edge.tasks.stream.BATCH_TOKENS
EMBEDDING = {"fp32": 4, "fp16": 2, "int8": 1, "int8w": 1, "int4": 1}  # bytes an element
# Bytes kept a byte of the matrices, rearranged for the kernels, and bytes of a worker
# beside its activations: its thread and what is widened while it computes
ENCODER = {
    "fp32": (0.55, 5 * MIB // 2),
    "fp16": (1.9, 13 * MIB // 2),
    "int8": (0.6, 5 * MIB // 2),
    "int8w": (0.3, 15 * MIB // 2),
    "int4": (0.1, 21 * MIB // 2),
}
FOREIGN = (0.6, 5 * MIB)


def of_decoder(
    folder: OnnxFolder, said: DecoderFolder, context: int, *, sequences: int = 1, available_bytes: int = 0
) -> Memory:
    """The memory one process needs to continue texts at this context (tokens)."""
    table = said.vocabulary * said.width * 4 if folder.level in ("fp32", "fp16") else 0  # the output's copy
    width, tokens = max(said.width, said.heads * said.head_size), min(BATCH, context)
    scores = said.heads * tokens * context // 4  # fitted to the peaks of one model: bench/LOG.md
    activations = tokens * (3 * said.inner + 4 * width)
    parts = (
        folder.bytes,
        round(folder.bytes * (MAPPED.get(folder.level, READ) - 1)) + table,
        2 * said.layers * said.kv_heads * said.head_size * 4 * context * sequences,
        4 * (scores + activations),
        sequences * said.vocabulary * 4 + said.vocabulary * CANDIDATE_BYTES,
        PROCESS_BYTES + said.vocabulary * HF_TOKEN_BYTES,
    )
    return Memory(*parts, sum(parts), available_bytes)


def of_encoder(folder: OnnxFolder, context: int, workers: int = 1, *, available_bytes: int = 0) -> Memory:
    """The memory one process needs to read texts of up to so many tokens, a batch of them on each worker.

    The peak is while it loads, when the embedding lies there twice, or while all the workers run.
    """
    config = folder.config
    width = folder.width or number(config, "hidden_size", "dim")
    inner = number(config, "intermediate_size", "hidden_dim") or 4 * width
    heads = number(config, "num_attention_heads", "n_heads")
    vocabulary = number(config, "vocab_size")
    embedding = min(folder.bytes, vocabulary * width * EMBEDDING.get(folder.level, 4))
    share, beside = ENCODER.get(folder.level, FOREIGN)
    tokens = max(TOKENS, context)
    attending = 2 * heads * tokens * context + 5 * width * tokens
    activations = 4 * max(attending, (2 * inner + 3 * width) * tokens)
    kept, computing = round((folder.bytes - embedding) * share) + RUN_BYTES, workers * (activations + beside)
    parts = (
        folder.bytes,
        kept,
        0,
        max(computing, embedding - kept),
        0,
        ENCODER_BYTES + vocabulary * HF_TOKEN_BYTES,
    )
    return Memory(*parts, sum(parts), available_bytes)


def number(config: Mapping[str, Any], *names: str) -> int:
    """The first of these fields that is a number, or 0."""
    found = (config.get(name) for name in names)
    return next((one for one in found if type(one) is int and one > 0), 0)
