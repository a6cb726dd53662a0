"""One module a model family: its configuration, its tensors' names and layouts, its forward pass.

Each has `read_config(raw)`, `weights(config)`, `notes(config)` and `forward(ops, weight, config, ids)`; its
configuration has `vocabulary` and `context`. One that llama.cpp computes also has `metadata(config)` and
`extra_tensors(config)`, its configuration `gguf_architecture`; the others are for ONNX only.

A family may also have: `rename(name)`, its table's name for a checkpoint's; `IGNORED`, regular expressions of the
table's names that may be there and are not used; `whole_fields(config, read)`, GGUF keys that are not the
architecture's, `read(name)` giving tensors as float32; `head_weights(config)`, the tensors that `whole_fields` puts
into the metadata. An encoder's configuration also has `task` ("embedding", "classification", "tokens": its output is
None, logits (1, labels), logits (tokens, labels)) and `pooling`, a key of `encoder_config.POOLINGS`.

`config_json(header, read)` is the way back: the config.json that a GGUF header (edge.gguf_header.Header) was made
from, with `architectures` and `model_type`; `read(name)` gives a tensor of the file as float32, for what only
tensors tell (Llama 3's rope). The ids of special tokens, the dtype and the like are added by the caller.
`read_config` reads the result, and `weights` of that has exactly the file's tensors.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from typing import Any

from edge.errors import ConversionError

# config.json's architecture → the module that knows it
KNOWN = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen",
    "Qwen3ForCausalLM": "qwen",
    "Phi3ForCausalLM": "phi3",
    "GPT2LMHeadModel": "gpt2",
    "Gemma2ForCausalLM": "gemma",
    "Gemma3ForCausalLM": "gemma",
    "Gemma3ForConditionalGeneration": "gemma",
    "BertModel": "bert",
    "BertForMaskedLM": "bert",
    "BertForSequenceClassification": "bert",
    "BertForTokenClassification": "bert",
    "RobertaModel": "roberta",
    "RobertaForSequenceClassification": "roberta",
    "RobertaForTokenClassification": "roberta",
    "XLMRobertaModel": "roberta",
    "XLMRobertaForSequenceClassification": "roberta",
    "XLMRobertaForTokenClassification": "roberta",
    "DistilBertModel": "distilbert",
    "DistilBertForSequenceClassification": "distilbert",
    "DistilBertForTokenClassification": "distilbert",
    "ElectraModel": "electra",
    "ElectraForPreTraining": "electra",
    "ElectraForSequenceClassification": "electra",
    "ElectraForTokenClassification": "electra",
    "AlbertModel": "albert",
    "AlbertForMaskedLM": "albert",
    "AlbertForSequenceClassification": "albert",
    "AlbertForTokenClassification": "albert",
    "MPNetModel": "mpnet",
    "MPNetForMaskedLM": "mpnet",
    "MPNetForSequenceClassification": "mpnet",
    "MPNetForTokenClassification": "mpnet",
    "DebertaV2Model": "deberta",
    "DebertaV2ForMaskedLM": "deberta",
    "DebertaV2ForSequenceClassification": "deberta",
    "DebertaV2ForTokenClassification": "deberta",
    "ModernBertModel": "modernbert",
    "ModernBertForMaskedLM": "modernbert",
    "ModernBertForSequenceClassification": "modernbert",
    "ModernBertForTokenClassification": "modernbert",
    "LlamaForSequenceClassification": "decoder_classifier",
    "LlamaForTokenClassification": "decoder_classifier",
    "MistralForSequenceClassification": "decoder_classifier",
    "MistralForTokenClassification": "decoder_classifier",
    "Qwen2ForSequenceClassification": "decoder_classifier",
    "Qwen2ForTokenClassification": "decoder_classifier",
    "Qwen3ForSequenceClassification": "decoder_classifier",
    "Qwen3ForTokenClassification": "decoder_classifier",
    "Gemma2ForSequenceClassification": "decoder_classifier",
    "Gemma2ForTokenClassification": "decoder_classifier",
    "Gemma3TextForSequenceClassification": "decoder_classifier",
}
# general.architecture of a GGUF file → the module that knows it
GGUF_KNOWN = {
    "llama": "llama",
    "qwen2": "qwen",
    "qwen3": "qwen",
    "phi3": "phi3",
    "gpt2": "gpt2",
    "gemma2": "gemma",
    "gemma3": "gemma",
    "bert": "bert",  # of RoBERTa and DistilBERT, too: the family is the one of the config.json it gives
}


def family_of(config: Mapping[str, Any]) -> Any:
    """The module of a config.json's family. Raises ConversionError naming the nearest known architecture."""
    named = config.get("architectures")
    architecture = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else None
    if architecture is None:
        raise ConversionError(
            "config.json names no architecture", hint="it is needed to know what the tensors mean"
        )
    if architecture not in KNOWN:
        near = difflib.get_close_matches(architecture, KNOWN, n=1, cutoff=0.7)
        nearest = f"the nearest known one is {near[0]}; " if near else ""
        raise ConversionError(
            f"{architecture} is not an architecture that is known here",
            hint=f"{nearest}known are {', '.join(KNOWN)}",
        )
    return importlib.import_module(f".{KNOWN[architecture]}", __name__)


def family_of_gguf(architecture: str) -> Any:
    """The module of a GGUF file's family. Raises ConversionError naming the nearest known architecture."""
    if architecture not in GGUF_KNOWN:
        near = difflib.get_close_matches(architecture, GGUF_KNOWN, n=1, cutoff=0.7)
        nearest = f"the nearest known one is {near[0]}; " if near else ""
        raise ConversionError(
            f"{architecture} is not a GGUF architecture that is known here",
            hint=f"{nearest}known are {', '.join(GGUF_KNOWN)}",
        )
    return importlib.import_module(f".{GGUF_KNOWN[architecture]}", __name__)


def table_names(family: Any, names: Iterable[str]) -> dict[str, str]:
    """A family's name → the checkpoint's. Raises ConversionError where two of a checkpoint's mean the same."""
    rename = getattr(family, "rename", str)
    found: dict[str, str] = {}
    for name in names:
        if found.setdefault(rename(name), name) != name:
            raise ConversionError(
                f"the checkpoint has both {found[rename(name)]} and {name}",
                hint="they are names of the same tensor",
            )
    return found
