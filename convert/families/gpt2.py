"""GPT-2 and what shares its shape: DistilGPT-2, DialoGPT and others.

Sources: the models' config.json as transformers documents it; Radford et al., 2019, "Language models are
unsupervised multitask learners"; for the key names the GGUF specification.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge.errors import ConversionError
from edge.gguf_header import Header

from .config import given, layers_of, need
from .from_header import Read, number, same_in_all_layers, shapes, vocabulary, without
from .weight import Array, Layout, Weight

# The causal mask, as old checkpoints carry it.
IGNORED = (r"h\.\d+\.attn\.(masked_)?bias",)
# transformers' names of the same function
GELU_TANH = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")

# Stored (in, out), a convolution of width 1; GGUF's rows are outputs.
TRANSPOSED = Layout(
    to_gguf=lambda x: np.ascontiguousarray(x.T), to_checkpoint=lambda x: np.ascontiguousarray(x.T), rows=0
)


@dataclass(frozen=True)
class Config:
    """What the tensors' shapes and the pass depend on; sizes in elements, context in tokens."""

    layers: int
    width: int
    inner: int
    heads: int
    vocabulary: int
    context: int
    epsilon: float
    tied: bool

    @property
    def gguf_architecture(self) -> str:
        return "gpt2"


def read_config(raw: Mapping[str, Any]) -> Config:
    """The configuration out of config.json. Raises ConversionError for what is missing or not supported."""
    activation = raw.get("activation_function", GELU_TANH[0])
    if activation not in GELU_TANH:
        raise ConversionError(
            f"activation_function is {activation!r}", hint=f"this family is known with {GELU_TANH[0]} only"
        )
    for key, usual in {
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    }.items():
        if bool(raw.get(key, usual)) != usual:
            raise ConversionError(f"{key} is {raw[key]!r}", hint="llama.cpp's gpt2 does not know that")
    width, heads = need(raw, "n_embd"), need(raw, "n_head")
    if width % heads:
        raise ConversionError(f"n_embd {width} is no multiple of n_head {heads}", hint="it has to be")
    return Config(
        layers=layers_of(raw, "n_layer"),
        width=width,
        inner=given(raw, "n_inner", 4 * width),
        heads=heads,
        vocabulary=need(raw, "vocab_size"),
        context=need(raw, "n_positions"),
        epsilon=need(raw, "layer_norm_epsilon", float),
        tied=bool(raw.get("tie_word_embeddings", True)),
    )


def rename(name: str) -> str:
    """Saved with its head, a checkpoint prefixes all other tensors; the first ones, and the hub's, do not."""
    return name.removeprefix("transformer.")


def config_json(header: Header, read: Read) -> dict[str, Any]:
    """The config.json a GGUF file of this family stands for.

    Raises ConversionError for what config.json cannot say (grouped heads, head counts that differ between layers),
    BadGGUF for keys that are missing.
    """
    heads = same_in_all_layers(header, "{arch}.attention.head_count")
    without(header, {"{arch}.attention.head_count_kv": heads, "{arch}.expert_count": 0})
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": header.get("{arch}.embedding_length", int),
        "n_inner": same_in_all_layers(header, "{arch}.feed_forward_length"),
        "n_layer": header.layers,
        "n_head": heads,
        "n_positions": header.get("{arch}.context_length", int),
        "activation_function": "gelu_new",
        "layer_norm_epsilon": number(header, "{arch}.attention.layer_norm_epsilon"),
        "vocab_size": vocabulary(header),
        "tie_word_embeddings": "output.weight" not in shapes(header),
    }


def weights(config: Config) -> tuple[Weight, ...]:
    """Every tensor, in the order of the pass."""
    width, inner = config.width, config.inner
    table = [
        Weight("wte.weight", "token_embd.weight", (config.vocabulary, width)),
        # llama.cpp's quantizer leaves positions as they are, too
        Weight("wpe.weight", "position_embd.weight", (config.context, width), float32=True),
    ]

    def norm(source: str, target: str) -> None:
        table.append(Weight(f"{source}.weight", f"{target}.weight", (width,)))
        table.append(Weight(f"{source}.bias", f"{target}.bias", (width,)))

    def project(source: str, target: str, columns: int, rows: int) -> None:
        table.append(
            Weight(f"{source}.weight", f"{target}.weight", (columns, rows), TRANSPOSED, (rows, columns))
        )
        table.append(Weight(f"{source}.bias", f"{target}.bias", (rows,)))

    for layer in range(config.layers):
        ours, theirs = f"blk.{layer}", f"h.{layer}"
        norm(f"{theirs}.ln_1", f"{ours}.attn_norm")
        project(f"{theirs}.attn.c_attn", f"{ours}.attn_qkv", width, 3 * width)
        project(f"{theirs}.attn.c_proj", f"{ours}.attn_output", width, width)
        norm(f"{theirs}.ln_2", f"{ours}.ffn_norm")
        project(f"{theirs}.mlp.c_fc", f"{ours}.ffn_up", width, inner)
        project(f"{theirs}.mlp.c_proj", f"{ours}.ffn_down", inner, width)
    norm("ln_f", "output_norm")
    if not config.tied:
        table.append(Weight("lm_head.weight", "output.weight", (config.vocabulary, width)))
    return tuple(table)


def metadata(config: Config) -> dict[str, int | float | str]:
    """The architecture's GGUF keys, without their `gpt2.` prefix."""
    return {
        "context_length": config.context,
        "embedding_length": config.width,
        "block_count": config.layers,
        "feed_forward_length": config.inner,
        "attention.head_count": config.heads,
        "attention.layer_norm_epsilon": config.epsilon,
        "vocab_size": config.vocabulary,
    }


def notes(config: Config) -> tuple[str, ...]:
    """What a user should know of the file: nothing."""
    return ()


def extra_tensors(config: Config) -> dict[str, Array]:
    """Tensors that GGUF wants and no checkpoint has: none."""
    return {}


def forward(ops: Any, weight: Callable[[str], Any], config: Config, ids: Any) -> tuple[Any, Any]:
    """(hidden states after the last norm, logits), both (tokens, …), from ids (tokens,), at most `context` of them.

    `weight` gives a tensor by its name in the checkpoint; `ops` is `numpy_ops` or a module like it.
    """

    def norm(x: Any, name: str) -> Any:
        return ops.layer_norm(x, weight(f"{name}.weight"), weight(f"{name}.bias"), config.epsilon)

    def project(x: Any, name: str) -> Any:
        return ops.linear(x, weight(f"{name}.weight").T, weight(f"{name}.bias"))

    positions = np.arange(len(ids))
    x = ops.embed(weight("wte.weight"), ids)
    x = x + ops.embed(weight("wpe.weight"), positions)
    for layer in range(config.layers):
        name = f"h.{layer}"
        fused = project(norm(x, f"{name}.ln_1"), f"{name}.attn.c_attn")
        query, key, value = (
            ops.split_heads(part, config.heads) for part in ops.split(fused, (config.width,) * 3)
        )
        x = x + project(ops.join_heads(ops.attention(query, key, value)), f"{name}.attn.c_proj")
        inner = ops.gelu_tanh(project(norm(x, f"{name}.ln_2"), f"{name}.mlp.c_fc"))
        x = x + project(inner, f"{name}.mlp.c_proj")
    hidden = norm(x, "ln_f")
    output = "wte.weight" if config.tied else "lm_head.weight"
    return hidden, ops.linear(hidden, weight(output))
