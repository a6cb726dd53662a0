"""From an encoder's GGUF header back to config.json."""

from __future__ import annotations

import json
from typing import Any

from edge.errors import ConversionError
from edge.gguf_header import Header

from .encoder_config import ACTIVATIONS, Config
from .from_header import number, same_in_all_layers, shapes, vocabulary

# What config.json says and no key of GGUF does, as JSON: the class, its labels, the rows before the first position
KEY = "edge.config"
MOST_ROWS = 1024  # pad_token_id + 1 is 2 in every known model
# The family of a file made elsewhere, by its tokenizer (`tokenizer.ggml.model`)
BY_TOKENIZER = {"gpt2": "Roberta", "t5": "XLMRoberta"}


def rest_of(config: Config) -> str:
    """The value of KEY."""
    said: dict[str, Any] = {
        "architectures": [config.architecture],
        "activation": next(name for name, function in ACTIVATIONS.items() if function == config.activation),
        "offset": config.offset,
    }
    if config.labels:
        said["id2label"] = dict(enumerate(config.labels))
    return json.dumps(said, ensure_ascii=False)


def config_fields(header: Header) -> dict[str, Any]:
    """config.json, under the names its family has. A file made elsewhere is taken for what its parts look like.

    Raises BadGGUF for keys that are missing or of another type, ConversionError where KEY is damaged.
    """
    said = rest(header)
    there = shapes(header)
    offset = said.get("offset", 2 if header.get("tokenizer.ggml.model", str, "") in BY_TOKENIZER else 0)
    architecture = said["architectures"][0] if said else guess(header)
    distilled = architecture.startswith("DistilBert")
    values = {
        "num_hidden_layers": header.layers,
        "hidden_size": header.get("{arch}.embedding_length", int),
        "intermediate_size": header.get("{arch}.feed_forward_length", int),
        "num_attention_heads": same_in_all_layers(header, "{arch}.attention.head_count"),
        "hidden_act": said.get("activation", "gelu"),
    }
    renamed = dict(zip(values, ("n_layers", "dim", "hidden_dim", "n_heads", "activation"), strict=True))
    fields: dict[str, Any] = {
        "architectures": [architecture],
        "max_position_embeddings": header.get("{arch}.context_length", int) + offset,
        "vocab_size": vocabulary(header),
        **({renamed[key]: value for key, value in values.items()} if distilled else values),
    }
    if distilled:
        fields["model_type"] = "distilbert"
    else:
        fields["layer_norm_eps"] = number(header, "{arch}.attention.layer_norm_epsilon")
        fields["type_vocab_size"] = there["token_types.weight"][0] if "token_types.weight" in there else 1
        fields["position_embedding_type"] = "absolute"
        fields["model_type"] = (
            "xlm-roberta" if architecture.startswith("XLM") else "roberta" if offset else "bert"
        )
    if offset:
        fields["pad_token_id"] = offset - 1
    if "id2label" in said:
        fields["id2label"] = said["id2label"]
        fields["label2id"] = {label: int(index) for index, label in said["id2label"].items()}
    elif "cls.output.weight" in there:
        fields["id2label"] = {str(index): f"LABEL_{index}" for index in range(there["cls.output.weight"][0])}
    if (problem := header.get("edge.problem_type", str, None)) is not None:
        fields["problem_type"] = problem
    return fields


def rest(header: Header) -> dict[str, Any]:
    """What KEY says, empty where it is absent. Raises ConversionError where it is not what `rest_of` writes."""
    text = header.get(KEY, str, None)
    if text is None:
        return {}
    try:
        said = json.loads(text)
        (architecture,) = said["architectures"]
        labels = said.get("id2label", {})
        sound = isinstance(architecture, str) and isinstance(said["activation"], str)
        sound &= type(said["offset"]) is int and 0 <= said["offset"] <= MOST_ROWS
        sound &= all(index.isdecimal() and isinstance(label, str) for index, label in labels.items())
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise ConversionError(f"{KEY} is damaged: {text[:60]!r}", hint="convert the checkpoint again")
    return dict(said)


def guess(header: Header) -> str:
    """The class of a file that does not say it."""
    there = shapes(header)
    family = BY_TOKENIZER.get(header.get("tokenizer.ggml.model", str, ""), "Bert")
    if "token_types.weight" not in there:
        family = "DistilBert"
    return family + ("ForSequenceClassification" if "cls.output.weight" in there else "Model")
