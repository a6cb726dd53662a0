"""What BERT, RoBERTa and DistilBERT share: one pass, under three sets of names (llama.cpp's `bert`).

Sources: Devlin et al., 2018, arXiv:1810.04805; Liu et al., 2019, arXiv:1907.11692; Sanh et al., 2019,
arXiv:1910.01108; the models' config.json as transformers documents it; for the key names the GGUF specification.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edge.engine import heads

from .encoder_config import POOLINGS, Config
from .encoder_header import KEY, rest_of
from .weight import Array, Layout, Weight

RANK = 4  # llama.cpp's pooling that ends in a classifier


def weights(config: Config) -> tuple[Weight, ...]:
    """Every tensor of the file, in the order of the pass."""
    width, inner, names, head = config.width, config.inner, config.names, config.head
    table: list[Weight] = []

    def norm(source: str, target: str, size: int = width) -> None:
        table.append(Weight(f"{source}.weight", f"{target}.weight", (size,)))
        table.append(Weight(f"{source}.bias", f"{target}.bias", (size,)))

    def project(
        source: str, target: str, rows: int, columns: int, *, required: bool = True, float32: bool = False
    ) -> None:
        shape = (rows, columns)
        table.append(
            Weight(f"{source}.weight", f"{target}.weight", shape, required=required, float32=float32)
        )
        table.append(Weight(f"{source}.bias", f"{target}.bias", (rows,), required=required))

    words = (config.vocabulary, config.embedded)
    table.append(Weight("embeddings.word_embeddings.weight", "token_embd.weight", words))
    if config.positioned:
        table.append(positions(config))
    if config.token_types:
        # llama.cpp adds its first row to f32 and ends the process where it is of another type
        types = (config.token_types, config.embedded)
        source = "embeddings.token_type_embeddings.weight"
        table.append(Weight(source, "token_types.weight", types, float32=True))
    norm("embeddings.LayerNorm", "token_embd_norm", config.embedded)
    if config.projection:
        project(config.projection, "", width, config.embedded)
    for layer, theirs in enumerate(dict.fromkeys(config.blocks)):
        ours = f"blk.{layer}"
        for part, target in ((names.query, "attn_q"), (names.key, "attn_k"), (names.value, "attn_v")):
            project(f"{theirs}.{part}", f"{ours}.{target}", width, width)
        project(f"{theirs}.{names.attention_output}", f"{ours}.attn_output", width, width)
        norm(f"{theirs}.{names.attention_norm}", f"{ours}.attn_output_norm")
        project(f"{theirs}.{names.up}", f"{ours}.ffn_up", inner, width)
        project(f"{theirs}.{names.down}", f"{ours}.ffn_down", width, inner)
        norm(f"{theirs}.{names.output_norm}", f"{ours}.layer_output_norm")
    if head.dense and head.native:
        project(head.dense, "cls", width, width, required=head.output is not None)
    if head.output and head.native:
        project(head.output, "cls.output", len(config.labels), width, float32=True)
    return tuple(table)


def positions(config: Config) -> Weight:
    """The table of positions without its first `offset` rows, which no text reaches and llama.cpp would use."""
    source, target = "embeddings.position_embeddings.weight", "position_embd.weight"
    stored = (config.context + config.offset, config.embedded)
    if not config.offset:
        return Weight(source, target, stored, float32=True)
    layout = Layout(
        to_gguf=lambda x: x[config.offset :],
        to_checkpoint=lambda x: np.concatenate([np.zeros((config.offset, x.shape[1]), x.dtype), x]),
        rows=0,
    )
    return Weight(source, target, stored, layout, (config.context, config.width), float32=True)


def head_weights(config: Config) -> tuple[Weight, ...]:
    """The tensors that stand in the metadata: `target` is their key."""
    head = config.head
    if head.native:
        return ()
    table = []
    for source, part, rows in (
        (head.dense, "dense", config.width),
        (head.output, "output", len(config.labels)),
    ):
        if source:
            table.append(Weight(f"{source}.weight", heads.key(part, "weight"), (rows, config.width)))
            table.append(Weight(f"{source}.bias", heads.key(part, "bias"), (rows,)))
    return tuple(table)


def metadata(config: Config) -> dict[str, Any]:
    """The architecture's GGUF keys, without their `bert.` prefix."""
    fields: dict[str, Any] = {
        "context_length": config.context,
        "embedding_length": config.width,
        "block_count": config.layers,
        "feed_forward_length": config.inner,
        "attention.head_count": config.heads,
        "attention.layer_norm_epsilon": config.epsilon,
        "attention.causal": False,
        "pooling_type": RANK if config.head.output and config.head.native else POOLINGS[config.pooling],
        "vocab_size": config.vocabulary,
    }
    if config.labels:
        fields["classifier.output_labels"] = list(config.labels)
    return fields


def whole_fields(config: Config, read: Callable[[str], Array]) -> dict[str, Any]:
    """GGUF keys that are not the architecture's, `read` giving tensors by their names in the checkpoint."""
    fields: dict[str, Any] = {
        # llama.cpp refuses a file that counts none, also where the model has no such table
        "tokenizer.ggml.token_type_count": max(1, config.token_types),
        KEY: rest_of(config),
        "edge.task": config.task,
    }
    if config.task == "embedding":
        fields["edge.normalize"] = config.normalize
    if config.problem:
        fields["edge.problem_type"] = config.problem
    stored = {weight.target: read(weight.source) for weight in head_weights(config)}
    if stored:
        fields |= heads.fields(stored, config.head.activation)
    return fields


def extra_tensors(config: Config) -> dict[str, Array]:
    """None: the file has what the checkpoint has."""
    return {}


def plain_notes(config: Config) -> tuple[str, ...]:
    """What a user should know of a file of any kind."""
    found = []
    if config.task == "embedding" and config.pooling == "none":
        found.append("the checkpoint does not say how to pool: the file gives a vector for each token")
    if config.architecture.endswith("ForMaskedLM"):
        found.append("the head that guesses masked words is left out: the file gives hidden states")
    if config.architecture.endswith("ForPreTraining"):
        found.append("the heads of pretraining are left out: the file gives hidden states")
    return tuple(found)


def notes(config: Config) -> tuple[str, ...]:
    """What a user should know of a GGUF file."""
    found = [*plain_notes(config)]
    if config.token_types > 1:
        found.append(
            "llama.cpp computes the whole input as a first text (token type 0): of a pair of texts, the second too"
        )
    if config.head.output and not config.head.native:
        found.append(
            "llama.cpp does not compute this head: it stands in the file's metadata (edge.head), "
            "and the certificate applies it"
        )
    if config.reads and config.reads < config.context:
        found.append(
            f"sentence-transformers would read {config.reads} tokens of a text, "
            f"llama.cpp reads up to {config.context}"
        )
    return tuple(found)


def forward(
    ops: Any,
    weight: Callable[[str], Any],
    config: Config,
    ids: Any,
    token_types: Any | None = None,
    *,
    bias: Callable[[str, Any, Any], Any] = lambda name, query, key: None,
    scale: float | None = None,
    after_first: Callable[[Any, Any], Any] = lambda x, embedded: x,
) -> tuple[Any, Any]:
    """(hidden states of the last layer (tokens, width), the head's logits or None), from ids (tokens,).

    Logits are (1, labels) for a classifier of texts, (tokens, labels) for one of tokens. `weight` gives a tensor by
    its name in the table; token types are 0 unless given. `bias(layer's name, query, key)` gives what is added to the
    scores of attention, which are multiplied by `scale`, both as `ops.attention` takes them; `after_first(x, embedded)`
    what follows the first layer, from its output and its input.
    """

    def project(x: Any, name: str) -> Any:
        return ops.linear(x, weight(f"{name}.weight"), weight(f"{name}.bias"))

    def norm(x: Any, name: str) -> Any:
        return ops.layer_norm(x, weight(f"{name}.weight"), weight(f"{name}.bias"), config.epsilon)

    names, head, activation = config.names, config.head, getattr(ops, config.activation)
    x = ops.embed(weight("embeddings.word_embeddings.weight"), ids)
    if config.positioned:
        places = ops.positions(ids, config.offset)
        x = x + ops.embed(weight("embeddings.position_embeddings.weight"), places)
    if config.token_types:
        kinds = ops.zeros(ids) if token_types is None else token_types
        x = x + ops.embed(weight("embeddings.token_type_embeddings.weight"), kinds)
    x = norm(x, "embeddings.LayerNorm")
    if config.projection:
        x = project(x, config.projection)
    embedded = x
    for index, name in enumerate(config.blocks):
        query, key, value = (
            ops.split_heads(project(x, f"{name}.{part}"), config.heads)
            for part in (names.query, names.key, names.value)
        )
        added = bias(name, query, key)
        seen = ops.attention(query, key, value, causal=False, bias=added, scale=scale)
        x = norm(
            x + project(ops.join_heads(seen), f"{name}.{names.attention_output}"),
            f"{name}.{names.attention_norm}",
        )
        inner = activation(project(x, f"{name}.{names.up}"))
        x = norm(x + project(inner, f"{name}.{names.down}"), f"{name}.{names.output_norm}")
        x = x if index else after_first(x, embedded)
    if not head.output:
        return x, None
    top = x if config.task == "tokens" else ops.first(x)
    if head.dense and head.activation:
        top = getattr(ops, head.activation)(project(top, head.dense))
    return x, project(top, head.output)


def renamed(name: str, prefix: str) -> str:
    """A checkpoint's name as the table has it: without the prefix of the model in a model, norms as they are now.

    TensorFlow's checkpoints called a norm's weight and bias gamma and beta.
    """
    name = name.removeprefix(prefix)
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
        if name.endswith(f"LayerNorm{old}"):
            return name.removesuffix(old) + new
    return name
