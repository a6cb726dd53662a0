"""Classifiers built in code, as ONNX folders of ours: words vote for labels, and a text has the sum of its words."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
MOST = 12  # tokens of a text
FEELINGS = ("negative", "neutral", "positive")
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def feelings(folder: Path, problem: str | None = None, labels: Sequence[str] = FEELINGS) -> Path:
    """`good` and `great` vote for the last label, `bad` for the first, every other word a little for the middle."""
    votes = {"good": [-2, 0, 2], "great": [-3, 0, 3], "bad": [3, 0, -3], "so": [0, 0.5, 0]}
    return write(folder, votes, labels, "classification", problem)


def names(folder: Path) -> Path:
    """`Ada` and `Byron` begin and go on with a person, `New` and `York` with a place; a piece votes otherwise."""
    votes = {
        "Ada": [0, 4, 0, 0, 0],
        "Byron": [0, 0, 4, 0, 0],
        "New": [0, 0, 0, 4, 0],
        "York": [0, 0, 0, 0, 4],
        "##s": [0, 0, 0, 4, 0],
        ".": [4, 0, 0, 0, 0],
        "-": [4, 0, 0, 0, 0],
        "in": [4, 0, 0, 0, 0],
    }
    return write(folder, votes, TAGS, "tokens", None)


def write(
    folder: Path, votes: Mapping[str, Sequence[float]], labels: Sequence[str], task: str, problem: str | None
) -> Path:
    letters = [*string.ascii_letters, *string.digits, *string.punctuation]
    words = [*SPECIAL, *votes, *(x for x in (*letters, *(f"##{x}" for x in letters)) if x not in votes)]
    table = np.zeros((len(words), len(labels)), np.float32)
    for word, vote in votes.items():
        table[words.index(word)] = vote[: len(labels)]
    nodes = [helper.make_node("Gather", ["votes", "input_ids"], ["each"])]
    shape = ["batch", "tokens", len(labels)]
    if task == "tokens":
        nodes.append(helper.make_node("Identity", ["each"], ["logits"]))
    else:
        nodes += [
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "last"], ["masks"]),
            helper.make_node("Mul", ["each", "masks"], ["counted"]),
            helper.make_node("ReduceSum", ["counted", "middle"], ["logits"], keepdims=0),
        ]
        del shape[1]
    graph = helper.make_graph(
        nodes,
        "votes",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
        [
            numpy_helper.from_array(table, "votes"),
            numpy_helper.from_array(np.array([2]), "last"),
            numpy_helper.from_array(np.array([1]), "middle"),
        ],
    )
    folder.mkdir(parents=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    edge = {
        "level": "fp32", "task": task, "labels": list(labels), "problem": problem,
        "pooling": "none", "normalize": False, "max_tokens": MOST, "width": len(labels),
    }  # fmt: skip
    names = {str(at): label for at, label in enumerate(labels)}
    config = {"model_type": "bert", "vocab_size": len(words), "id2label": names, "problem_type": problem}
    (folder / "config.json").write_text(json.dumps({**config, "edge": edge}))
    tokenizer = Tokenizer(
        models.WordPiece(
            {word: at for at, word in enumerate(words)}, unk_token="[UNK]", max_input_chars_per_word=50
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
