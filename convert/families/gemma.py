"""Gemma 2 and Gemma 3 (the language model): the tensors and the pass; gemma_config has the configuration.

Sources: the models' files and config.json as transformers documents them; the reports arXiv:2408.00118 and
arXiv:2503.19786; for the key names the GGUF specification.

The embedding's rows are multiplied by √width, exactly: so does llama.cpp, and so does transformers in float32.
In bfloat16 transformers rounds that factor as it rounds everything else, which is precision and not the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .gemma_config import PERIOD, Config, config_json, every_but, read_config
from .weight import Array, Layout, Weight

__all__ = [
    "IGNORED",
    "Config",
    "config_json",
    "extra_tensors",
    "forward",
    "metadata",
    "notes",
    "read_config",
    "weights",
]

# The part that sees pictures, and a tied output under the name it has there.
IGNORED = (r"(vision_tower|multi_modal_projector)\..*", r"language_model\.lm_head\.weight")
# A norm multiplies by 1 + its weight; GGUF stores the sum.
PLUS_ONE = Layout(to_gguf=lambda x: x + np.float32(1), to_checkpoint=lambda x: x - np.float32(1))


def weights(config: Config) -> tuple[Weight, ...]:
    """Every tensor, in the order of the pass."""
    width, inner, head = config.width, config.inner, config.head_size
    q_width, kv_width = config.heads * head, config.kv_heads * head
    table = [Weight(f"{config.prefix}embed_tokens.weight", "token_embd.weight", (config.vocabulary, width))]

    def norm(source: str, target: str, size: int = width) -> None:
        table.append(Weight(f"{source}.weight", f"{target}.weight", (size,), PLUS_ONE))

    def project(source: str, target: str, rows: int, columns: int) -> None:
        table.append(Weight(f"{source}.weight", f"{target}.weight", (rows, columns)))

    for layer in range(config.layers):
        ours, theirs = f"blk.{layer}", f"{config.prefix}layers.{layer}"
        attention, mlp = f"{theirs}.self_attn", f"{theirs}.mlp"
        norm(f"{theirs}.input_layernorm", f"{ours}.attn_norm")
        project(f"{attention}.q_proj", f"{ours}.attn_q", q_width, width)
        project(f"{attention}.k_proj", f"{ours}.attn_k", kv_width, width)
        if config.generation == 3:
            norm(f"{attention}.q_norm", f"{ours}.attn_q_norm", head)
            norm(f"{attention}.k_norm", f"{ours}.attn_k_norm", head)
        project(f"{attention}.v_proj", f"{ours}.attn_v", kv_width, width)
        project(f"{attention}.o_proj", f"{ours}.attn_output", width, q_width)
        norm(f"{theirs}.post_attention_layernorm", f"{ours}.post_attention_norm")
        norm(f"{theirs}.pre_feedforward_layernorm", f"{ours}.ffn_norm")
        project(f"{mlp}.gate_proj", f"{ours}.ffn_gate", inner, width)
        project(f"{mlp}.up_proj", f"{ours}.ffn_up", inner, width)
        project(f"{mlp}.down_proj", f"{ours}.ffn_down", width, inner)
        norm(f"{theirs}.post_feedforward_layernorm", f"{ours}.post_ffw_norm")
    norm(f"{config.prefix}norm", "output_norm")
    if not config.tied:
        project(output_of(config), "output", config.vocabulary, width)
    return tuple(table)


def output_of(config: Config) -> str:
    """The output's name without `.weight`."""
    return config.prefix + "embed_tokens" if config.tied else config.prefix.removesuffix("model.") + "lm_head"


def metadata(config: Config) -> dict[str, Any]:
    """The architecture's GGUF keys, without their `gemma2.` or `gemma3.` prefix."""
    fields: dict[str, Any] = {
        "context_length": config.context,
        "embedding_length": config.width,
        "block_count": config.layers,
        "feed_forward_length": config.inner,
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads,
        "attention.key_length": config.head_size,
        "attention.value_length": config.head_size,
        "attention.layer_norm_rms_epsilon": config.epsilon,
        "rope.dimension_count": config.head_size,
        "rope.freq_base": config.rope.base,
        "vocab_size": config.vocabulary,
    }
    if config.rope.linear != 1:
        fields |= {"rope.scaling.type": "linear", "rope.scaling.factor": config.rope.linear}
    if config.generation == 3:
        fields["rope.freq_base_swa"] = config.local_rope.base
    if config.window:
        fields["attention.sliding_window"] = config.window
    if config.window and config.sliding != every_but(PERIOD[config.generation], config.layers):
        fields["attention.sliding_window_pattern"] = list(config.sliding)
    if config.attention_cap is not None:
        fields["attn_logit_softcapping"] = config.attention_cap
    if config.final_cap is not None:
        fields["final_logit_softcapping"] = config.final_cap
    return fields


def notes(config: Config) -> tuple[str, ...]:
    """What a user should know of the file."""
    return () if config.prefix == "model." else ("the file holds the language model: it sees no pictures",)


def extra_tensors(config: Config) -> dict[str, Array]:
    """None: all it needs is in the checkpoint."""
    return {}


def states(ops: Any, weight: Callable[[str], Any], config: Config, ids: Any) -> Any:
    """The hidden states after the last norm, (tokens, width), from ids (tokens,), as `forward` takes them."""
    scale = config.query_scalar**-0.5

    def project(x: Any, name: str) -> Any:
        return ops.linear(x, weight(f"{name}.weight"))

    def norm(x: Any, name: str) -> Any:
        return ops.rms_norm(x, weight(f"{name}.weight") + 1, config.epsilon)

    x = ops.embed(weight(f"{config.prefix}embed_tokens.weight"), ids) * math.sqrt(config.width)
    for layer, slides in enumerate(config.sliding):
        name = f"{config.prefix}layers.{layer}"
        attention, mlp = f"{name}.self_attn", f"{name}.mlp"
        frequencies = (config.local_rope if slides else config.rope).frequencies(config.head_size)
        normed = norm(x, f"{name}.input_layernorm")
        query = ops.split_heads(project(normed, f"{attention}.q_proj"), config.heads)
        key = ops.split_heads(project(normed, f"{attention}.k_proj"), config.kv_heads)
        if config.generation == 3:
            query, key = norm(query, f"{attention}.q_norm"), norm(key, f"{attention}.k_norm")
        seen = ops.attention(
            ops.rope(query, frequencies),
            ops.rope(key, frequencies),
            ops.split_heads(project(normed, f"{attention}.v_proj"), config.kv_heads),
            window=config.window if slides else None,
            scale=scale,
            cap=config.attention_cap,
        )
        mixed = project(ops.join_heads(seen), f"{attention}.o_proj")
        x = x + norm(mixed, f"{name}.post_attention_layernorm")
        normed = norm(x, f"{name}.pre_feedforward_layernorm")
        gate = ops.gelu_tanh(project(normed, f"{mlp}.gate_proj"))
        inner = project(gate * project(normed, f"{mlp}.up_proj"), f"{mlp}.down_proj")
        x = x + norm(inner, f"{name}.post_feedforward_layernorm")
    return norm(x, f"{config.prefix}norm")


def forward(ops: Any, weight: Callable[[str], Any], config: Config, ids: Any) -> tuple[Any, Any]:
    """(hidden states after the last norm, logits), both (tokens, …), from ids (tokens,).

    `weight` gives a tensor by its name in the checkpoint; `ops` is `numpy_ops` or a module like it.
    """
    hidden = states(ops, weight, config, ids)
    logits = ops.linear(hidden, weight(f"{output_of(config)}.weight"))
    return hidden, logits if config.final_cap is None else ops.soft_cap(logits, config.final_cap)
