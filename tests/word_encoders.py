"""Encoders built in code, as ONNX folders of ours: a word has a vector, a text the mean of its words'."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WIDTH, MOST = 16, 12
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORDS = (
    "good", "fine", "great", "bad", "poor", "awful", "card", "cash", "loan", "rate", "the", "a", "is", "film", "broken",
)  # fmt: skip


def embedder(folder: Path, *, level: str = "fp32", broken: bool = False) -> Path:
    """Gives sentence_embedding (texts, 16) of length 1; `broken`: the word `broken` is NaN."""
    nodes = [
        *MEANS,
        helper.make_node("LpNormalization", ["mean"], ["sentence_embedding"], axis=-1, p=2),
        helper.make_node("Identity", ["hidden"], ["last_hidden_state"]),
    ]
    outputs = {"sentence_embedding": ["batch", WIDTH], "last_hidden_state": ["batch", "tokens", WIDTH]}
    words = table()
    if broken:
        words[len(SPECIAL) + WORDS.index("broken")] = np.nan
    save(folder, nodes, outputs, {"words": words})
    describe(folder, level, task="embedding", pooling="mean", normalize=True, labels=[])
    return folder


def cross_encoder(folder: Path, labels: Sequence[str] = ("relevant",), problem: str | None = None) -> Path:
    """Logits (pairs, labels): four times how alike the means of the two texts are, for every label."""
    nodes = [
        *MEANS,
        helper.make_node("Cast", ["token_type_ids"], ["type"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["type", "two"], ["types"]),
        helper.make_node("Mul", ["hidden", "types"], ["second"]),
        helper.make_node("ReduceSum", ["second", "one"], ["answer"], keepdims=0),
        helper.make_node("ReduceSum", ["kept", "one"], ["both"], keepdims=0),
        helper.make_node("Sub", ["both", "answer"], ["query"]),
        helper.make_node("Mul", ["query", "answer"], ["products"]),
        helper.make_node("MatMul", ["products", "last"], ["logits"]),
    ]
    constants = {"words": table(), "last": np.full((WIDTH, len(labels)), 4, np.float32)}
    save(folder, nodes, {"logits": ["batch", len(labels)]}, constants, typed=True)
    more = {"problem": problem, "id2label": {str(at): label for at, label in enumerate(labels)}}
    describe(
        folder, "fp32", task="classification", pooling="none", normalize=False, labels=list(labels), **more
    )
    return folder


def table() -> np.ndarray:
    """A vector a word; those of special tokens are zero."""
    words = np.random.default_rng(7).normal(size=(len(SPECIAL) + len(WORDS), WIDTH)).astype(np.float32)
    words /= np.linalg.norm(words, axis=1, keepdims=True)
    words[: len(SPECIAL)] = 0
    words[1] = 0.01  # a text of unknown words has a direction, too
    return words


MEANS = (
    helper.make_node("Gather", ["words", "input_ids"], ["hidden"]),
    helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
    helper.make_node("Unsqueeze", ["mask", "two"], ["masks"]),
    helper.make_node("Mul", ["hidden", "masks"], ["kept"]),
    helper.make_node("ReduceMean", ["kept", "one"], ["mean"], keepdims=0),
)


def save(folder, nodes, outputs, constants, typed=False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if typed else [])]
    axes = {"one": np.array([1]), "two": np.array([2])}
    graph = helper.make_graph(
        list(nodes),
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"]) for name in names],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in (constants | axes).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(model, folder / "model.onnx")


def describe(folder, level, **said) -> None:
    """config.json and tokenizer.json."""
    vocabulary = {word: number for number, word in enumerate((*SPECIAL, *WORDS))}
    edge = {"level": level, "problem": None, "max_tokens": MOST, "width": WIDTH} | said
    config = {"model_type": "bert", "vocab_size": len(vocabulary)}
    config |= {"id2label": edge.pop("id2label")} if "id2label" in edge else {}
    (folder / "config.json").write_text(json.dumps({**config, "edge": edge}))
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
