"""RoBERTa and XLM-R: BERT's pass, positions that start after the padding's, a classifier of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import bert, encoder_config
from .bert import config_json
from .config import layers_of, need
from .encoder import extra_tensors, forward, head_weights, metadata, notes, renamed, weights, whole_fields
from .encoder_config import Config, Head, task_of

__all__ = [
    "config_json",
    "extra_tensors",
    "forward",
    "head_weights",
    "metadata",
    "notes",
    "read_config",
    "rename",
    "weights",
    "whole_fields",
]

HEADS = {
    "embedding": Head(dense="pooler.dense"),
    "classification": Head(dense="classifier.dense", output="classifier.out_proj"),
    "tokens": Head(output="classifier", activation=None, native=False),
}
# Numbers from 0 on, the head of pretraining, and the pooler beside a classifier, which does not read it
IGNORED = (r"embeddings\.position_ids", r"lm_head\..*", r"pooler\.dense\..*")


def rename(name: str) -> str:
    """The table's name for a checkpoint's."""
    return renamed(name, "roberta.")


def read_config(raw: Mapping[str, Any]) -> Config:
    """The configuration out of config.json. Raises ConversionError for what is missing or not supported."""
    # A padding token sits at row pad_token_id; the first token of a text at the one after it.
    padding = raw.get("pad_token_id")
    offset = (padding if isinstance(padding, int) and padding >= 0 else 1) + 1
    sizes = {
        "layers": layers_of(raw),
        "width": need(raw, "hidden_size"),
        "inner": need(raw, "intermediate_size"),
        "heads": need(raw, "num_attention_heads"),
        "context": need(raw, "max_position_embeddings") - offset,
        "offset": offset,
        "token_types": need(raw, "type_vocab_size"),
    }
    epsilon = need(raw, "layer_norm_eps", float) if "layer_norm_eps" in raw else 1e-12
    head = HEADS[task_of(raw)]
    return encoder_config.read(raw, sizes, bert.NAMES, head, activation="hidden_act", epsilon=epsilon)
