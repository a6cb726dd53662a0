"""MPNet: BERT's pass with a bias for the distance between tokens, which all layers share.

Source: Song et al., 2020, arXiv:2004.09297; the buckets of distances are T5's (Raffel et al., 2020,
arXiv:1910.10683). llama.cpp has no such architecture: ONNX only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edge.errors import ConversionError

from . import encoder, encoder_config
from .config import given, layers_of, need
from .encoder import plain_notes as notes
from .encoder import renamed
from .encoder_config import Config, Head, Names, task_of
from .weight import Array, Weight

__all__ = ["forward", "notes", "read_config", "rename", "weights"]

NAMES = Names(
    layer="encoder.layer.{}",
    query="attention.attn.q",
    key="attention.attn.k",
    value="attention.attn.v",
    attention_output="attention.attn.o",
    attention_norm="attention.LayerNorm",
    up="intermediate.dense",
    down="output.dense",
    output_norm="output.LayerNorm",
)
HEADS = {
    "embedding": Head(dense="pooler.dense"),
    "classification": Head(dense="classifier.dense", output="classifier.out_proj"),
    "tokens": Head(output="classifier", activation=None),
}
# Numbers from 0 on, the head of pretraining, and the pooler beside a classifier, which does not read it
IGNORED = (r"embeddings\.position_ids", r"lm_head\..*", r"pooler\.dense\..*")
OFFSET = 2  # transformers' MPNet has its padding at row 1, whatever pad_token_id says
BUCKETS, FARTHEST = 32, 128  # transformers' code has them, config.json's number only sizes the table
BIASES = "encoder.relative_attention_bias.weight"


def rename(name: str) -> str:
    """The table's name for a checkpoint's."""
    return renamed(name, "mpnet.")


def read_config(raw: Mapping[str, Any]) -> Config:
    """The configuration out of config.json. Raises ConversionError for what is missing or not supported."""
    buckets = given(raw, "relative_attention_num_buckets", BUCKETS)
    if buckets != BUCKETS:
        raise ConversionError(
            f"relative_attention_num_buckets is {buckets}", hint=f"this family is known with {BUCKETS}"
        )
    sizes = {
        "layers": layers_of(raw),
        "width": need(raw, "hidden_size"),
        "inner": need(raw, "intermediate_size"),
        "heads": need(raw, "num_attention_heads"),
        "context": need(raw, "max_position_embeddings") - OFFSET,
        "offset": OFFSET,
        "token_types": 0,
    }
    epsilon = need(raw, "layer_norm_eps", float) if "layer_norm_eps" in raw else 1e-12
    head = HEADS[task_of(raw)]
    return encoder_config.read(raw, sizes, NAMES, head, activation="hidden_act", epsilon=epsilon)


def weights(config: Config) -> tuple[Weight, ...]:
    """Every tensor of the file."""
    return (*encoder.weights(config), Weight(BIASES, "", (BUCKETS, config.heads)))


def forward(
    ops: Any, weight: Callable[[str], Any], config: Config, ids: Any, token_types: Any | None = None
) -> tuple[Any, Any]:
    """(hidden states, logits or None) as `encoder.forward` gives them; there are no token types."""
    biases = ops.head_biases(weight(BIASES), ops.distances(ids, buckets(config.context)))
    return encoder.forward(ops, weight, config, ids, bias=lambda name, query, key: biases)


def buckets(context: int) -> Array:
    """The bucket of each distance i − j from 1 − context to context − 1, int64."""
    distances = np.arange(1 - context, context)
    half = BUCKETS // 2
    exact = half // 2
    far = np.maximum(np.abs(distances), 1).astype(np.float32) / np.float32(exact)
    logs = np.log(far) / np.float32(math.log(FARTHEST / exact)) * np.float32(half - exact)
    large = np.minimum(exact + logs.astype(np.int64), half - 1)
    return np.asarray(
        np.where(distances < 0, half, 0) + np.where(np.abs(distances) < exact, np.abs(distances), large)
    )
