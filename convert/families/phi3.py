"""Phi-3, Phi-3.5 (mini, medium) and Phi-4 (mini and 14B): fused projections, LongRoPE.

Sources: the models' config.json as transformers documents it; Microsoft, 2024, arXiv:2404.14219; for the key names
the GGUF specification.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edge.errors import ConversionError
from edge.gguf_header import Header

from .config import given, grouped_heads, layers_of, need, rope_of
from .from_header import Read, number, same_in_all_layers, shapes, vocabulary, without
from .longrope import LONG, LongRope, longrope_fields, longrope_metadata, longrope_tensors, read_longrope
from .rope import Rope
from .weight import Array, Weight


@dataclass(frozen=True)
class Config:
    """What the tensors' shapes and the pass depend on; sizes in elements, context and window in tokens.

    `rotated` is how many of a head's elements turn with their position.
    """

    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    rotated: int
    vocabulary: int
    context: int
    epsilon: float
    base: float
    longrope: LongRope | None
    window: int | None
    tied: bool

    @property
    def gguf_architecture(self) -> str:
        return "phi3"

    @property
    def head_size(self) -> int:
        return self.width // self.heads

    @property
    def fused(self) -> tuple[int, int, int]:
        """Rows of the queries, keys and values in the fused projection."""
        return self.width, self.kv_heads * self.head_size, self.kv_heads * self.head_size

    @property
    def reach(self) -> int:
        """Tokens up to which the file computes what the checkpoint does: llama.cpp leaves Phi-3's window out."""
        return min(self.context, self.window or self.context)


def read_config(raw: Mapping[str, Any]) -> Config:
    """The configuration out of config.json. Raises ConversionError for what is missing or not supported."""
    if raw.get("hidden_act", "silu") != "silu":
        raise ConversionError(
            f"hidden_act is {raw['hidden_act']!r}", hint="this family is known with silu only"
        )
    (heads, kv_heads), width = grouped_heads(raw), need(raw, "hidden_size")
    if width % heads or given(raw, "head_dim", width // heads) != width // heads:
        raise ConversionError(
            f"{heads} heads of {raw.get('head_dim') or width / heads:g} are not as wide as the model, {width}",
            hint="llama.cpp's phi3 has no other",
        )
    rope, _, base = rope_of(raw)
    part = rope.get("partial_rotary_factor", raw.get("partial_rotary_factor") or 1.0)
    rotated = int(width // heads * part) if isinstance(part, (int, float)) and 0 < part <= 1 else 0
    if rotated < 2 or rotated % 2:
        raise ConversionError(
            f"config.json says partial_rotary_factor is {part!r}",
            hint="pairs of elements rotate, one at least",
        )
    context = need(raw, "max_position_embeddings")
    longrope = read_longrope(raw, rotated, context)
    return Config(
        layers=layers_of(raw),
        width=width,
        inner=need(raw, "intermediate_size"),
        heads=heads,
        kv_heads=kv_heads,
        rotated=rotated,
        vocabulary=need(raw, "vocab_size"),
        context=context,
        epsilon=need(raw, "rms_norm_eps", float),
        base=base,
        longrope=longrope,
        window=given(raw, "sliding_window", 0) or None,
        tied=bool(raw.get("tie_word_embeddings", False)),
    )


def config_json(header: Header, read: Read) -> dict[str, Any]:
    """The config.json a GGUF file of this family stands for.

    Raises ConversionError for what config.json cannot say (experts, heads that differ between layers), BadGGUF for
    keys that are missing.
    """
    without(header, {"{arch}.expert_count": 0, "{arch}.rope.scaling.factor": 1.0})
    heads = same_in_all_layers(header, "{arch}.attention.head_count")
    width = header.get("{arch}.embedding_length", int)
    head_size = width // max(1, heads)
    if not head_size:
        raise ConversionError(f"the file has {heads} heads for a width of {width}", hint="it is damaged")
    without(header, {"{arch}.attention.key_length": head_size, "{arch}.attention.value_length": head_size})
    tensors = shapes(header)
    if LONG not in tensors:
        without(header, {"{arch}.rope.scaling.attn_factor": 1.0})
    return {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "hidden_size": width,
        "intermediate_size": same_in_all_layers(header, "{arch}.feed_forward_length"),
        "num_hidden_layers": header.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": same_in_all_layers(header, "{arch}.attention.head_count_kv", heads),
        "hidden_act": "silu",
        "max_position_embeddings": header.get("{arch}.context_length", int),
        "rms_norm_eps": number(header, "{arch}.attention.layer_norm_rms_epsilon"),
        "vocab_size": vocabulary(header),
        "tie_word_embeddings": "output.weight" not in tensors,
        # llama.cpp's own converter states the window that llama.cpp leaves out; 0 is none
        "sliding_window": header.get("{arch}.attention.sliding_window", int, 0) or None,
        "partial_rotary_factor": share(header.get("{arch}.rope.dimension_count", int, head_size), head_size),
        "rope_theta": number(header, "{arch}.rope.freq_base", 10000.0),
        **(longrope_fields(header, read) if LONG in tensors else {}),
    }


def share(rotated: int, head_size: int) -> float:
    """The partial_rotary_factor that says so, for readers who cut their product with the head size to an int."""
    found = rotated / head_size
    return found if int(head_size * found) == rotated else math.nextafter(found, 1)


def weights(config: Config) -> tuple[Weight, ...]:
    """Every tensor, in the order of the pass. GGUF's Phi-3 is fused and rotates halves as checkpoints do."""
    width, inner = config.width, config.inner
    table = [Weight("model.embed_tokens.weight", "token_embd.weight", (config.vocabulary, width))]
    for layer in range(config.layers):
        ours, theirs = f"blk.{layer}", f"model.layers.{layer}"
        table += [
            Weight(f"{theirs}.input_layernorm.weight", f"{ours}.attn_norm.weight", (width,)),
            Weight(
                f"{theirs}.self_attn.qkv_proj.weight", f"{ours}.attn_qkv.weight", (sum(config.fused), width)
            ),
            Weight(f"{theirs}.self_attn.o_proj.weight", f"{ours}.attn_output.weight", (width, width)),
            Weight(f"{theirs}.post_attention_layernorm.weight", f"{ours}.ffn_norm.weight", (width,)),
            Weight(f"{theirs}.mlp.gate_up_proj.weight", f"{ours}.ffn_up.weight", (2 * inner, width)),
            Weight(f"{theirs}.mlp.down_proj.weight", f"{ours}.ffn_down.weight", (width, inner)),
        ]
    table.append(Weight("model.norm.weight", "output_norm.weight", (width,)))
    if not config.tied:
        table.append(Weight("lm_head.weight", "output.weight", (config.vocabulary, width)))
    return tuple(table)


def metadata(config: Config) -> dict[str, int | float | str]:
    """The architecture's GGUF keys, without their `phi3.` prefix."""
    return {
        "context_length": config.reach,
        "embedding_length": config.width,
        "block_count": config.layers,
        "feed_forward_length": config.inner,
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads,
        "attention.layer_norm_rms_epsilon": config.epsilon,
        "rope.dimension_count": config.rotated,
        "rope.freq_base": config.base,
        "vocab_size": config.vocabulary,
        **(longrope_metadata(config.longrope) if config.longrope else {}),
    }


def notes(config: Config) -> tuple[str, ...]:
    """What a user should know of the file."""
    found = []
    if config.reach != config.context:
        found.append(
            f"the file's context is {config.reach} tokens, not {config.context}: beyond its attention window "
            "llama.cpp would compute full attention"
        )
    if config.longrope and config.reach > config.longrope.original_context:
        found.append(
            f"opened with a context above {config.longrope.original_context} tokens, llama.cpp computes short texts "
            "with the divisors of long ones, and so a little worse"
        )
    return tuple(found)


def extra_tensors(config: Config) -> dict[str, Array]:
    """Tensors that GGUF wants and no checkpoint has: the divisors of the rotation frequencies, f32."""
    return longrope_tensors(config.longrope) if config.longrope else {}


def forward(ops: Any, weight: Callable[[str], Any], config: Config, ids: Any) -> tuple[Any, Any]:
    """(hidden states after the last norm, logits), both (tokens, …), from ids (tokens,).

    `weight` gives a tensor by its name in the checkpoint; `ops` is `numpy_ops` or a module like it. How many ids
    there are decides between the short and the long divisors, as in transformers.
    """
    if config.longrope:
        frequencies = config.longrope.frequencies(config.rotated, len(ids))
        scale = config.longrope.scale
    else:
        frequencies, scale = Rope(config.base).unscaled(config.rotated), 1.0

    x = ops.embed(weight("model.embed_tokens.weight"), ids)
    for layer in range(config.layers):
        name = f"model.layers.{layer}"
        normed = ops.rms_norm(x, weight(f"{name}.input_layernorm.weight"), config.epsilon)
        query, key, value = ops.split(
            ops.linear(normed, weight(f"{name}.self_attn.qkv_proj.weight")), config.fused
        )
        seen = ops.attention(
            ops.rope(ops.split_heads(query, config.heads), frequencies, scale),
            ops.rope(ops.split_heads(key, config.kv_heads), frequencies, scale),
            ops.split_heads(value, config.kv_heads),
            window=config.window,
        )
        x = x + ops.linear(ops.join_heads(seen), weight(f"{name}.self_attn.o_proj.weight"))
        normed = ops.rms_norm(x, weight(f"{name}.post_attention_layernorm.weight"), config.epsilon)
        both = ops.linear(normed, weight(f"{name}.mlp.gate_up_proj.weight"))
        gate, up = ops.split(both, (config.inner, config.inner))
        x = x + ops.linear(ops.silu(gate) * up, weight(f"{name}.mlp.down_proj.weight"))
    hidden = ops.rms_norm(x, weight("model.norm.weight"), config.epsilon)
    output = "model.embed_tokens.weight" if config.tied else "lm_head.weight"
    return hidden, ops.linear(hidden, weight(output))
