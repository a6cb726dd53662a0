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

from edge.memory import BATCH, CANDIDATE_BYTES, MIB, Memory
from edge.onnx_folder import DecoderFolder, OnnxFolder

PROCESS_BYTES = 62 * MIB  # a Python process with the command, the template engine and both libraries
TOKEN_BYTES = 420  # a vocabulary entry with its merges in the tokenizers library
# Resident bytes a byte of the files: mapped, and rearranged copies; half is widened to float32
MAPPED = {"fp32": 1.02, "fp16": 1.9, "int8": 1.0, "int8w": 1.15, "int4": 1.2}
READ = 1.8  # of weights inside model.onnx, whose bytes and copies stay
TEXTS = 32  # an encoder's batch


def of_decoder(
    folder: OnnxFolder, said: DecoderFolder, context: int, *, sequences: int = 1, available_bytes: int = 0
) -> Memory:
    """The memory one process needs to continue texts at this context (tokens)."""
    table = said.vocabulary * said.width * 4 if folder.level in ("fp32", "fp16") else 0  # the output's copy
    width, tokens = max(said.width, said.heads * said.head_size), min(BATCH, context)
    scores = said.heads * tokens * context
    activations = tokens * (3 * said.inner + 4 * width)
    parts = (
        folder.bytes,
        round(folder.bytes * (MAPPED.get(folder.level, READ) - 1)) + table,
        2 * said.layers * said.kv_heads * said.head_size * 4 * context * sequences,
        4 * (scores + activations),
        sequences * said.vocabulary * 4 + said.vocabulary * CANDIDATE_BYTES,
        PROCESS_BYTES + said.vocabulary * TOKEN_BYTES,
    )
    return Memory(*parts, sum(parts), available_bytes)


def of_encoder(folder: OnnxFolder, context: int, *, available_bytes: int = 0) -> Memory:
    """The memory one process needs to read batches of texts of so many tokens."""
    config = folder.config
    width = folder.width or number(config, "hidden_size", "dim")
    inner = number(config, "intermediate_size", "hidden_dim") or 4 * width
    heads = number(config, "num_attention_heads", "n_heads")
    activations = context * (2 * inner + 4 * width) + heads * context * context
    vocabulary = number(config, "vocab_size")
    parts = (
        folder.bytes,
        round(folder.bytes * (READ - 1)),
        0,
        4 * TEXTS * activations,
        0,
        PROCESS_BYTES + vocabulary * TOKEN_BYTES,
    )
    return Memory(*parts, sum(parts), available_bytes)


def number(config: Mapping[str, Any], *names: str) -> int:
    """The first of these fields that is a number, or 0."""
    found = (config.get(name) for name in names)
    return next((one for one in found if type(one) is int and one > 0), 0)
