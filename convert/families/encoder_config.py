"""What config.json and a sentence-transformers folder say of an encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from edge.errors import ConversionError

from .config import need

# How hidden states become one vector, with llama.cpp's number for it (enum llama_pooling_type)
POOLINGS = {"none": 0, "mean": 1, "cls": 2, "last": 3}
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
MOST_LABELS = 1 << 16
PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")
# What a class does; the first part of its name is the family's.
TASKS = {
    "Model": "embedding",
    "ForMaskedLM": "embedding",
    "ForPreTraining": "embedding",
    "ForSequenceClassification": "classification",
    "ForTokenClassification": "tokens",
}


@dataclass(frozen=True)
class Names:
    """A family's names of the parts of the pass; `layer` is what the parts of a layer start with."""

    layer: str
    query: str
    key: str
    value: str
    attention_output: str
    attention_norm: str
    up: str
    down: str
    output_norm: str


@dataclass(frozen=True)
class Head:
    """Names of the layers after the last hidden state, and the function between them.

    `dense` alone is the pooler of a model that is not a classifier. llama.cpp computes a `native` head; the others
    stand in the file's metadata (`edge.engine.heads`) and are applied to what it gives.
    """

    dense: str | None = None
    output: str | None = None
    activation: str | None = "tanh"
    native: bool = True


@dataclass(frozen=True)
class Config:
    """What the tensors' shapes and the pass depend on; sizes in elements, context in tokens.

    `offset` is how many rows of the position table precede the first token's. `pooling` is a key of POOLINGS and
    with `normalize` how an embedding is made; `reads` the tokens of a text that sentence-transformers takes, 0 for
    all. `labels` are a classifier's, `problem` its problem_type if config.json says one. `embedding` is the
    embeddings' width where the layer `projection` brings it to the model's; `sequence` names the
    layers where several share their weights; only a `positioned` model has a table of positions.
    """

    architecture: str
    task: str
    names: Names
    head: Head
    layers: int
    width: int
    inner: int
    heads: int
    vocabulary: int
    context: int
    offset: int
    token_types: int
    epsilon: float
    activation: str
    pooling: str
    normalize: bool
    reads: int
    labels: tuple[str, ...]
    problem: str | None
    embedding: int = 0
    projection: str | None = None
    sequence: tuple[str, ...] = ()
    positioned: bool = True

    @property
    def embedded(self) -> int:
        """Elements of a row of the embeddings."""
        return self.embedding or self.width

    @property
    def blocks(self) -> tuple[str, ...]:
        """What the names of each layer's tensors start with, in the order of the pass."""
        return self.sequence or tuple(map(self.names.layer.format, range(self.layers)))

    @property
    def gguf_architecture(self) -> str:
        return "bert"


Made = TypeVar("Made", bound=Config)


def task_of(raw: Mapping[str, Any]) -> str:
    architecture: str = raw["architectures"][0]
    return next(TASKS[end] for end in TASKS if architecture.endswith(end))


def read(
    raw: Mapping[str, Any],
    sizes: Mapping[str, Any],
    names: Names,
    head: Head,
    *,
    activation: str,
    epsilon: float,
    kind: type[Made] = Config,  # type: ignore[assignment]
    usual: str = "gelu",
) -> Made:
    """The configuration; `activation` is the key that names it, and what else families name differently is given.

    `sizes` has what a `kind` of configuration has beside, `usual` is the activation of a config.json that names none.

    Raises ConversionError for what is missing, contradicts itself or is not supported.
    """
    task = task_of(raw)
    function = raw.get(activation, usual)
    if not isinstance(function, str) or function not in ACTIVATIONS:
        raise ConversionError(f"{activation} is {function!r:.60}", hint="this family is known with gelu only")
    if raw.get("position_embedding_type", "absolute") != "absolute":
        raise ConversionError(
            f"position_embedding_type is {raw['position_embedding_type']!r}",
            hint="this family is known with absolute positions only",
        )
    if raw.get("is_decoder"):
        raise ConversionError(
            "config.json makes a decoder of this encoder", hint="no such model is known here"
        )
    if sizes["width"] % sizes["heads"]:
        raise ConversionError(
            f"{sizes['heads']} heads do not divide a width of {sizes['width']}",
            hint="config.json contradicts itself",
        )
    if sizes["context"] < 1:
        raise ConversionError(
            f"config.json leaves {sizes['context']} positions", hint="RoBERTa keeps pad_token_id + 1 of them"
        )
    folder = raw.get("sentence_transformers") or {}
    return kind(
        architecture=raw["architectures"][0],
        task=task,
        names=names,
        head=head,
        vocabulary=need(raw, "vocab_size"),
        epsilon=epsilon,
        activation=ACTIVATIONS[function],
        pooling={"classification": "cls", "tokens": "none"}.get(task) or folder.get("pooling", "none"),
        normalize=task == "embedding" and bool(folder.get("normalize")),
        reads=folder.get("reads", 0),
        labels=() if task == "embedding" else labels(raw),
        problem=None if task == "embedding" else problem(raw),
        **sizes,
    )


def labels(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """A classifier's labels by their number; transformers leaves out what are its two defaults.

    Raises ConversionError where they are not texts numbered from 0 on.
    """
    named = raw.get("id2label")
    if named is None:
        count = need(raw, "num_labels", most=MOST_LABELS) if "num_labels" in raw else 2
        return tuple(f"LABEL_{index}" for index in range(count))
    if (
        not isinstance(named, Mapping)
        or not named
        or {str(key) for key in named} != {str(index) for index in range(len(named))}
        or not all(isinstance(text, str) for text in named.values())
    ):
        raise ConversionError("config.json's id2label is no list of labels numbered from 0 on")
    by_number = {str(key): text for key, text in named.items()}
    return tuple(by_number[str(index)] for index in range(len(named)))


def problem(raw: Mapping[str, Any]) -> str | None:
    """What the logits mean, if it is said. Raises ConversionError for anything transformers does not know."""
    said = raw.get("problem_type")
    if said is not None and said not in PROBLEMS:
        raise ConversionError(f"problem_type is {said!r}", hint=f"known are {', '.join(PROBLEMS)}")
    return said
