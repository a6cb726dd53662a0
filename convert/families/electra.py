"""ELECTRA's discriminator: BERT's pass, embeddings that may be narrower, a classifier of its own.

Source: Clark et al., 2020, arXiv:2003.10555. llama.cpp has no such architecture: ONNX only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import bert, encoder_config
from .config import given, layers_of, need
from .encoder import forward, renamed, weights
from .encoder import plain_notes as notes
from .encoder_config import Config, Head, task_of

__all__ = ["forward", "notes", "read_config", "rename", "weights"]

HEADS = {
    "embedding": Head(),
    "classification": Head(dense="classifier.dense", output="classifier.out_proj", activation="gelu"),
    "tokens": Head(output="classifier", activation=None),
}
# Numbers from 0 on, and the heads of pretraining
IGNORED = (r"embeddings\.position_ids", r"(discriminator|generator)_(predictions|lm_head)\..*")


def rename(name: str) -> str:
    """The table's name for a checkpoint's."""
    return renamed(name, "electra.")


def read_config(raw: Mapping[str, Any]) -> Config:
    """The configuration out of config.json. Raises ConversionError for what is missing or not supported."""
    width = need(raw, "hidden_size")
    embedding = given(raw, "embedding_size", 128)
    sizes = {
        "layers": layers_of(raw),
        "width": width,
        "inner": need(raw, "intermediate_size"),
        "heads": need(raw, "num_attention_heads"),
        "context": need(raw, "max_position_embeddings"),
        "offset": 0,
        "token_types": given(raw, "type_vocab_size", 2),
        "embedding": embedding,
        "projection": None if embedding == width else "embeddings_project",
    }
    epsilon = need(raw, "layer_norm_eps", float) if "layer_norm_eps" in raw else 1e-12
    head = HEADS[task_of(raw)]
    return encoder_config.read(raw, sizes, bert.NAMES, head, activation="hidden_act", epsilon=epsilon)
