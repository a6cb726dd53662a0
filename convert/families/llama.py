"""Llama and what shares its shape: Llama 1 to 3, Code Llama, TinyLlama, SmolLM2, Mistral.

Sources: the models' config.json as transformers documents it; Touvron et al., 2023, arXiv:2307.09288; for the
key names the GGUF specification.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge.errors import ConversionError
from edge.gguf_header import Header

from .config import given, grouped_heads, head_size_of, layers_of, need
from .from_header import Read, number, rope_fields, same_in_all_layers, shapes, vocabulary, without
from .rope import Rope, read_rope
from .weight import Array, Weight, rope_rows


@dataclass(frozen=True)
class Config:
    """What the tensors' shapes and the pass depend on; sizes in elements, context in tokens."""

    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    context: int
    epsilon: float
    rope: Rope
    window: int | None
    tied: bool
    attention_bias: bool
    mlp_bias: bool

    @property
    def gguf_architecture(self) -> str:
        return "llama"

    @property
    def reach(self) -> int:
        """Tokens up to which the file computes what the checkpoint does: GGUF's `llama` has no window."""
        return min(self.context, self.window or self.context)


def read_config(raw: Mapping[str, Any]) -> Config:
    """The configuration out of config.json. Raises ConversionError for what is missing or not supported."""
    if raw.get("hidden_act", "silu") != "silu":
        raise ConversionError(
            f"hidden_act is {raw['hidden_act']!r}", hint="this family is known with silu only"
        )
    (heads, kv_heads), width = grouped_heads(raw), need(raw, "hidden_size")
    return Config(
        layers=layers_of(raw),
        width=width,
        inner=need(raw, "intermediate_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size_of(raw, width // heads),
        vocabulary=need(raw, "vocab_size"),
        context=need(raw, "max_position_embeddings"),
        epsilon=need(raw, "rms_norm_eps", float),
        rope=read_rope(raw),
        window=given(raw, "sliding_window", 0) or None,
        tied=bool(raw.get("tie_word_embeddings", False)),
        attention_bias=bool(raw.get("attention_bias", False)),
        mlp_bias=bool(raw.get("mlp_bias", False)),
    )


def config_json(header: Header, read: Read) -> dict[str, Any]:
    """The config.json a GGUF file of this family stands for.

    Mistral's files are Llama's to GGUF, and come back so. Raises ConversionError for what config.json cannot say
    (experts, heads that differ between layers, other scalings), BadGGUF for keys that are missing.
    """
    without(header, {"{arch}.expert_count": 0, "{arch}.rope.scaling.attn_factor": 1.0})
    heads = same_in_all_layers(header, "{arch}.attention.head_count")
    width = header.get("{arch}.embedding_length", int)
    head_size = header.get("{arch}.attention.key_length", int, width // max(1, heads))
    without(
        header,
        {"{arch}.attention.value_length": head_size, "{arch}.rope.dimension_count": head_size},
    )
    tensors = shapes(header)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": same_in_all_layers(header, "{arch}.feed_forward_length"),
        "num_hidden_layers": header.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": same_in_all_layers(header, "{arch}.attention.head_count_kv", heads),
        "head_dim": head_size,
        "hidden_act": "silu",
        "max_position_embeddings": header.get("{arch}.context_length", int),
        "rms_norm_eps": number(header, "{arch}.attention.layer_norm_rms_epsilon"),
        "vocab_size": vocabulary(header),
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in tensors,
        **rope_fields(header, read, head_size),
    }


def weights(config: Config) -> tuple[Weight, ...]:
    """Every tensor, in the order of the pass."""
    width, inner, kv_width = config.width, config.inner, config.kv_heads * config.head_size
    q_width = config.heads * config.head_size
    table = [Weight("model.embed_tokens.weight", "token_embd.weight", (config.vocabulary, width))]

    def project(
        source: str, target: str, rows: int, columns: int, *, bias: bool, rotated: bool = False
    ) -> None:
        layout = rope_rows(config.head_size) if rotated else None
        table.append(Weight(f"{source}.weight", f"{target}.weight", (rows, columns), layout))
        if bias:
            table.append(Weight(f"{source}.bias", f"{target}.bias", (rows,), layout))

    for layer in range(config.layers):
        ours, theirs = f"blk.{layer}", f"model.layers.{layer}"
        attention, mlp = f"{theirs}.self_attn", f"{theirs}.mlp"
        table.append(Weight(f"{theirs}.input_layernorm.weight", f"{ours}.attn_norm.weight", (width,)))
        biased = config.attention_bias
        project(f"{attention}.q_proj", f"{ours}.attn_q", q_width, width, bias=biased, rotated=True)
        project(f"{attention}.k_proj", f"{ours}.attn_k", kv_width, width, bias=biased, rotated=True)
        project(f"{attention}.v_proj", f"{ours}.attn_v", kv_width, width, bias=biased)
        project(f"{attention}.o_proj", f"{ours}.attn_output", width, q_width, bias=biased)
        table.append(Weight(f"{theirs}.post_attention_layernorm.weight", f"{ours}.ffn_norm.weight", (width,)))
        project(f"{mlp}.gate_proj", f"{ours}.ffn_gate", inner, width, bias=config.mlp_bias)
        project(f"{mlp}.up_proj", f"{ours}.ffn_up", inner, width, bias=config.mlp_bias)
        project(f"{mlp}.down_proj", f"{ours}.ffn_down", width, inner, bias=config.mlp_bias)
    table.append(Weight("model.norm.weight", "output_norm.weight", (width,)))
    if not config.tied:
        table.append(Weight("lm_head.weight", "output.weight", (config.vocabulary, width)))
    return tuple(table)


def metadata(config: Config) -> dict[str, int | float | str]:
    """The architecture's GGUF keys, without their `llama.` prefix."""
    fields: dict[str, int | float | str] = {
        "context_length": config.reach,
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
    return fields


def notes(config: Config) -> tuple[str, ...]:
    """What a user should know of the file."""
    if config.reach == config.context:
        return ()
    return (
        f"the file's context is {config.reach} tokens, not {config.context}: beyond its attention window "
        "llama.cpp would compute full attention",
    )


def extra_tensors(config: Config) -> dict[str, Array]:
    """Tensors that GGUF wants and no checkpoint has: Llama 3's divisors of the rotation frequencies, f32."""
    if config.rope.llama3 is None:
        return {}
    return {"rope_freqs.weight": config.rope.divisors(config.head_size).astype(np.float32)}


def states(ops: Any, weight: Callable[[str], Any], config: Config, ids: Any) -> Any:
    """The hidden states after the last norm, (tokens, width), from ids (tokens,), as `forward` takes them."""
    frequencies = config.rope.frequencies(config.head_size)

    def project(x: Any, name: str, *, bias: bool) -> Any:
        return ops.linear(x, weight(f"{name}.weight"), weight(f"{name}.bias") if bias else None)

    x = ops.embed(weight("model.embed_tokens.weight"), ids)
    for layer in range(config.layers):
        name = f"model.layers.{layer}"
        attention, mlp, biased = f"{name}.self_attn", f"{name}.mlp", config.attention_bias
        normed = ops.rms_norm(x, weight(f"{name}.input_layernorm.weight"), config.epsilon)
        query = ops.split_heads(project(normed, f"{attention}.q_proj", bias=biased), config.heads)
        key = ops.split_heads(project(normed, f"{attention}.k_proj", bias=biased), config.kv_heads)
        value = ops.split_heads(project(normed, f"{attention}.v_proj", bias=biased), config.kv_heads)
        seen = ops.attention(
            ops.rope(query, frequencies), ops.rope(key, frequencies), value, window=config.window
        )
        x = x + project(ops.join_heads(seen), f"{attention}.o_proj", bias=biased)
        normed = ops.rms_norm(x, weight(f"{name}.post_attention_layernorm.weight"), config.epsilon)
        gate = ops.silu(project(normed, f"{mlp}.gate_proj", bias=config.mlp_bias))
        inner = gate * project(normed, f"{mlp}.up_proj", bias=config.mlp_bias)
        x = x + project(inner, f"{mlp}.down_proj", bias=config.mlp_bias)
    return ops.rms_norm(x, weight("model.norm.weight"), config.epsilon)


def forward(ops: Any, weight: Callable[[str], Any], config: Config, ids: Any) -> tuple[Any, Any]:
    """(hidden states after the last norm, logits), both (tokens, …), from ids (tokens,).

    `weight` gives a tensor by its name in the checkpoint; `ops` is `numpy_ops` or a module like it.
    """
    hidden = states(ops, weight, config, ids)
    output = "model.embed_tokens.weight" if config.tied else "lm_head.weight"
    return hidden, ops.linear(hidden, weight(output))
