"""From an encoder's GGUF header back to config.json."""

from __future__ import annotations

import json
from typing import Any

from edge.gguf_header import Header

from .encoder_config import ACTIVATIONS, Config
from .from_header import number, same_in_all_layers, shapes, vocabulary

# What config.json says and no key of GGUF does, as JSON: the class, its labels, the rows before the first position
KEY = "edge.config"
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

    Raises BadGGUF for keys that are missing or of another type.
    """
    try:
        said = json.loads(header.get(KEY, str, "{}"))
    except (ValueError, RecursionError):
        said = {}
    there = shapes(header)
    offset = said.get("offset", 2 if header.get("tokenizer.ggml.model", str, "") in BY_TOKENIZER else 0)
    architecture = (said.get("architectures") or [guess(header)])[0]
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


def guess(header: Header) -> str:
    """The class of a file that does not say it."""
    there = shapes(header)
    family = BY_TOKENIZER.get(header.get("tokenizer.ggml.model", str, ""), "Bert")
    if "token_types.weight" not in there:
        family = "DistilBert"
    return family + ("ForSequenceClassification" if "cls.output.weight" in there else "Model")
