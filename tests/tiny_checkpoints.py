"""A tiny checkpoint of every family in its real layout: a config.json, deterministic random weights.

`goldens/make.py` lets transformers compute them once; `test_goldens.py` holds our passes and llama.cpp to that.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tiny import MERGES, SPECIALS, byte_letters

from edge.convert.families import family_of
from edge.convert.safetensors import Writer

Array = NDArray[Any]
TOKENS, SHORT, PADDING = 40, 9, 4

DECODER = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 320,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
LLAMA = {**DECODER, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "rope_theta": 10000.0}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MISTRAL = {**LLAMA, "architectures": ["MistralForCausalLM"], "model_type": "mistral"}
QWEN2 = {**DECODER, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "rope_theta": 1000000.0}
QWEN3 = {**QWEN2, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 32}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
GEMMA2 = {
    **DECODER,
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "hidden_size": 96,  # its root, by which the embedding is multiplied, is no whole number
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "hidden_activation": "gelu_pytorch_tanh",
    "sliding_window": 16,
    "num_hidden_layers": 4,
    "attn_logit_softcapping": 2.0,  # of a model so small, that a real one's 50 would change nothing
    "final_logit_softcapping": 3.0,
    "tie_word_embeddings": True,
}
GEMMA3 = {
    **DECODER,
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "hidden_size": 96,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "hidden_activation": "gelu_pytorch_tanh",
    "sliding_window": 16,
    "sliding_window_pattern": 6,
    "num_hidden_layers": 7,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "tie_word_embeddings": True,
}
PHI3 = {
    **DECODER,
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "rope_theta": 10000.0,
    "sliding_window": None,
}
LONGROPE = {
    "type": "longrope",
    "short_factor": [1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 1.75, 2.0],
    "long_factor": [1.1, 1.5, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0],
}
GPT2 = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "n_ctx": 512,
    "n_embd": 64,
    "n_head": 4,
    "n_inner": None,
    "n_layer": 2,
    "n_positions": 512,
    "vocab_size": 320,
    "bos_token_id": 2,
    "eos_token_id": 2,
}
BERT = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "vocab_size": 320,
}
ROBERTA = {
    **BERT,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "architectures": ["RobertaModel"],
    "model_type": "roberta",
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 514,
    "pad_token_id": 1,
    "type_vocab_size": 1,
}
DISTILBERT = {
    "architectures": ["DistilBertModel"],
    "model_type": "distilbert",
    "activation": "gelu",
    "dim": 64,
    "hidden_dim": 96,
    "max_position_embeddings": 512,
    "n_heads": 4,
    "n_layers": 2,
    "pad_token_id": 0,
    "vocab_size": 320,
}
LABELS = {"id2label": {"0": "bad", "1": "fair", "2": "good"}, "label2id": {"bad": 0, "fair": 1, "good": 2}}
ELECTRA = {**BERT, "architectures": ["ElectraModel"], "model_type": "electra", "embedding_size": 32}
ALBERT = {
    **BERT,
    "architectures": ["AlbertModel"],
    "model_type": "albert",
    "hidden_act": "gelu_new",
    "embedding_size": 32,
    "num_hidden_layers": 4,
    "num_hidden_groups": 2,
    "inner_group_num": 2,
}
MPNET = {
    **ROBERTA,
    "architectures": ["MPNetModel"],
    "model_type": "mpnet",
    "relative_attention_num_buckets": 32,
}
DEBERTA = {  # as v3 is
    **BERT,
    "architectures": ["DebertaV2Model"],
    "model_type": "deberta-v2",
    "layer_norm_eps": 1e-7,
    "max_relative_positions": 24,
    "norm_rel_ebd": "layer_norm",
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "position_buckets": 8,
    "relative_attention": True,
    "share_att_key": True,
    "type_vocab_size": 0,
}
DEBERTA_PARTS_APART = {
    **DEBERTA,
    "max_relative_positions": 16,
    "norm_rel_ebd": "none",
    "pos_att_type": "c2p|p2c",
    "position_biased_input": True,
    "position_buckets": -1,
    "share_att_key": False,
    "type_vocab_size": 2,
}
MODERNBERT = {
    "architectures": ["ModernBertModel"],
    "model_type": "modernbert",
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "hidden_activation": "gelu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "local_attention": 16,
    "local_rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "norm_eps": 1e-5,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
    "vocab_size": 320,
}
MODERNBERT_BIASES = {
    "attention_bias": True, "classifier_bias": True, "classifier_pooling": "mean", "mlp_bias": True, "norm_bias": True,
}  # fmt: skip
# What stands before the names of a model that has a classifier's head beside it
PREFIXES = {
    **{"bert": "bert.", "roberta": "roberta.", "xlm-roberta": "roberta.", "distilbert": "distilbert."},
    **{"electra": "electra.", "albert": "albert.", "mpnet": "mpnet.", "deberta-v2": "deberta."},
    "modernbert": "model.",
}
HEADS = ("classifier.", "pre_classifier.", "head.", "score.", "model.")  # a decoder's has its prefix already


def classifier(base: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return headed(base, "ForSequenceClassification", **more)


def tags(base: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return headed(base, "ForTokenClassification", **more)


def headed(base: Mapping[str, Any], end: str, **more: Any) -> dict[str, Any]:
    name = base["architectures"][0].removesuffix("Model").removesuffix("ForCausalLM")
    return {**base, **LABELS, "architectures": [name + end], **more}


# case → config.json
CASES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "llama-llama3-rope": {**LLAMA, "rope_theta": 500000.0, "rope_scaling": LLAMA3_ROPE},
    "llama-linear-rope": {**LLAMA, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "llama-tied": {**LLAMA, "tie_word_embeddings": True},
    "llama-biases-wide-heads": {**LLAMA, "attention_bias": True, "mlp_bias": True, "head_dim": 32},
    "mistral": {**MISTRAL, "sliding_window": None},
    "mistral-window": {**MISTRAL, "sliding_window": 16},
    "qwen2": QWEN2,
    "qwen2-tied": {**QWEN2, "tie_word_embeddings": True},
    "qwen2-yarn": {**QWEN2, "rope_scaling": YARN},
    "qwen2-window": {**QWEN2, "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
    "qwen3": QWEN3,
    "gemma2": GEMMA2,
    "gemma3": GEMMA3,
    "gemma3-linear-rope": {**GEMMA3, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    "phi3": PHI3,
    "phi3-longrope-short": {
        **PHI3, "rope_scaling": LONGROPE, "max_position_embeddings": 1024, "original_max_position_embeddings": 512,
    },
    "phi3-longrope-long": {
        **PHI3, "rope_scaling": LONGROPE, "max_position_embeddings": 1024, "original_max_position_embeddings": 32,
    },
    "phi3-partial-rotation": {**PHI3, "partial_rotary_factor": 0.75},
    "gpt2": GPT2,
    "bert": BERT,
    "bert-classifier": {**BERT, **LABELS, "architectures": ["BertForSequenceClassification"]},
    "bert-tokens": {**BERT, **LABELS, "architectures": ["BertForTokenClassification"]},
    "roberta": ROBERTA,
    "roberta-classifier": {**ROBERTA, **LABELS, "architectures": ["RobertaForSequenceClassification"]},
    "xlm-roberta-classifier": {
        **ROBERTA, **LABELS, "architectures": ["XLMRobertaForSequenceClassification"], "model_type": "xlm-roberta",
    },
    "distilbert": DISTILBERT,
    "distilbert-classifier": {**DISTILBERT, **LABELS, "architectures": ["DistilBertForSequenceClassification"]},
    "bert-cross-encoder": classifier(BERT, id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0}),
    "roberta-tokens": tags(ROBERTA),
    "xlm-roberta-tokens": tags({**ROBERTA, "architectures": ["XLMRobertaModel"], "model_type": "xlm-roberta"}),
    "distilbert-tokens": tags(DISTILBERT),
    "electra": ELECTRA,
    "electra-classifier": classifier(ELECTRA, embedding_size=64),
    "electra-tokens": tags(ELECTRA),
    "albert": ALBERT,
    "albert-classifier": classifier(ALBERT, num_hidden_groups=1, inner_group_num=1),
    "albert-tokens": tags(ALBERT, hidden_act="gelu"),
    "mpnet": MPNET,
    "mpnet-classifier": classifier(MPNET),
    "mpnet-tokens": tags(MPNET),
    "deberta-v2": DEBERTA_PARTS_APART,
    "deberta-v2-c2p": {**DEBERTA_PARTS_APART, "pos_att_type": ["c2p"], "position_buckets": 8},
    "deberta-v2-convolution": classifier(DEBERTA, conv_act="gelu", conv_kernel_size=3),
    "deberta-v3": DEBERTA,
    "deberta-v3-classifier": classifier(DEBERTA),
    "deberta-v3-tokens": tags(DEBERTA),
    "deberta-v2-cross-encoder": classifier(
        DEBERTA_PARTS_APART, id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0}, pooler_hidden_act="tanh"
    ),
    "modernbert": MODERNBERT,
    "modernbert-classifier": classifier(MODERNBERT),
    "modernbert-biases-mean": classifier(MODERNBERT, **MODERNBERT_BIASES),
    "modernbert-tokens": tags(MODERNBERT),
    "llama-classifier": classifier(LLAMA),
    "llama-tokens": tags(LLAMA),
    "mistral-classifier": classifier(MISTRAL, sliding_window=16),
    "qwen2-classifier": classifier(QWEN2),
    "qwen2-tokens": tags(QWEN2),
    "qwen3-classifier": classifier(QWEN3),
    "gemma2-classifier": classifier(GEMMA2),
    "gemma3-classifier": classifier(GEMMA3, architectures=["Gemma3TextForSequenceClassification"]),
}  # fmt: skip

# those that llama.cpp computes; the others become ONNX folders only
GGUF = tuple(case for case, config in CASES.items() if hasattr(family_of(config), "metadata"))


def weights(case: str) -> dict[str, Array]:
    """Every tensor of a case by its name in the family's tables, float32; independent of their order."""
    family = family_of(CASES[case])
    config = family.read_config(CASES[case])
    table = [*family.weights(config), *getattr(family, "head_weights", lambda config: ())(config)]
    return {weight.source: values(case, weight.source, weight.shape) for weight in table}


def name_in_file(case: str, name: str) -> str:
    """The name in a checkpoint as transformers writes it."""
    return stored_name(CASES[case], name)


def stored_name(config: Mapping[str, Any], name: str) -> str:
    """The same, of a config.json."""
    model = config["model_type"]
    beside = (*HEADS, "pooler.") if model == "deberta-v2" else HEADS
    if "Classification" not in config["architectures"][0] or name.startswith(beside):
        return name
    return PREFIXES[model] + name


def values(case: str, name: str, shape: tuple[int, ...]) -> Array:
    """Norms near their neutral value, small biases, matrices that keep activations near 1."""
    draw = np.random.Generator(np.random.PCG64(zlib.crc32(f"{case} {name}".encode())))
    noise = draw.standard_normal(shape)
    if name.endswith((".bias", ".beta")):
        return (0.1 * noise).astype(np.float32)
    if len(shape) == 1:
        neutral = 0 if CASES[case]["model_type"].startswith("gemma") else 1  # Gemma adds 1 itself
        return (neutral + 0.1 * noise).astype(np.float32)
    return (noise / np.sqrt(shape[-1])).astype(np.float32)


def write(case: str, folder: Path) -> Path:
    """The checkpoint's folder: config.json, model.safetensors and a tokenizer of the family's kind."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CASES[case], indent=2))
    model = CASES[case]["model_type"]
    if model in ("bert", "distilbert", "electra"):
        (folder / "vocab.txt").write_text("\n".join(word_pieces()) + "\n", encoding="utf-8")
    else:
        tokenizer = roberta_bytes() if "roberta" in model else byte_level()
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    tensors = {name_in_file(case, name): array for name, array in weights(case).items()}
    table = [(name, "F32", array.shape) for name, array in tensors.items()]
    with Writer(folder / "model.safetensors", table, {"format": "pt"}) as writer:
        for name, array in tensors.items():
            writer.write(name, array)
    return folder


def byte_level(specials: tuple[str, ...] = SPECIALS) -> dict[str, Any]:
    """A tokenizer.json in GPT-2's manner: specials, one token a byte, ten merges."""
    tokens = [*specials, *byte_letters(), *(merge.replace(" ", "") for merge in MERGES)]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    vocab = {token: index for index, token in enumerate(tokens)}
    return {
        "version": "1.0",
        "added_tokens": [special(index, text) for index, text in enumerate(specials)],
        "pre_tokenizer": level,
        "decoder": level,
        "model": {"type": "BPE", "vocab": vocab, "merges": list(MERGES)},
    }


def special(index: int, text: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": text, "special": True, **flags}


def roberta_bytes() -> dict[str, Any]:
    """The same with RoBERTa's specials around a text; XLM-R's Unigram has tests of its own."""
    around = {
        "type": "RobertaProcessing",
        "cls": ["<s>", 0],
        "sep": ["</s>", 2],
        "trim_offsets": True,
        "add_prefix_space": False,
    }
    return {**byte_level(("<s>", "<pad>", "</s>")), "post_processor": around}


def word_pieces() -> list[str]:
    """A vocab.txt in BERT's manner: printable ASCII begins and, letters and digits, goes on with words."""
    ascii_ = [chr(code) for code in range(0x21, 0x7F) if not chr(code).isupper()]
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *ascii_, *(f"##{c}" for c in ascii_ if c.isalnum())]


def ids(config: Mapping[str, Any]) -> Array:
    """The fixed text: tokens that are no special ones in any of the families."""
    count = 150 if config["model_type"] == "mpnet" else TOKENS  # MPNet's farthest bucket begins at 128
    return np.random.Generator(np.random.PCG64(1)).integers(3, config["vocab_size"], count)


def types(config: Mapping[str, Any], count: int) -> Array:
    """Token types of so many tokens: of a cross-encoder, the second half is a second text."""
    return (np.arange(count) >= count // 2).astype(np.int64) * (len(config.get("id2label", ())) == 1)
