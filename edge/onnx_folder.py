"""The folder of an ONNX model, and what it says of itself; the graph is not read here.

    NAME-LEVEL/  model.onnx (model.onnx.data where the weights exceed 2 GB), tokenizer.json, config.json,
                 certificate.json

config.json is the checkpoint's, with an object `edge` that our conversion adds: {"level", "task", "labels", "problem",
"pooling", "normalize", "max_tokens", "width"}; a decoder's also has {"architecture", "layers", "heads", "kv_heads",
"head_size", "inner", "vocabulary", "context", "chat_template", "bos", "eos", "ends"}.

A folder made elsewhere says the same in several files: config.json (the class, its labels), modules.json with
1_Pooling/config.json (sentence-transformers), sentence_bert_config.json and tokenizer_config.json (tokens it reads).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.errors import ModelNotFound, RequestError, UnsafeFile

GRAPH, DATA, TOKENIZER, CONFIG, CERTIFICATE = (
    "model.onnx", "model.onnx.data", "tokenizer.json", "config.json", "certificate.json",
)  # fmt: skip
TASKS = ("embedding", "classification", "tokens", "generation")
POOLINGS = ("mean", "cls", "last", "none")
PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")
# What a class of transformers does, by the end of its name; any other gives hidden states.
CLASSES = {
    "ForSequenceClassification": "classification",
    "ForTokenClassification": "tokens",
    "ForCausalLM": "generation",
    "LMHeadModel": "generation",
}
# sentence-transformers' names, of old (flags) and since its version 5.2 (one text)
FLAGS = {
    "pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "last",
}  # fmt: skip
MODES = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
MAX_JSON = 4 << 20  # bytes; id2label of 65,536 labels is 2 MB
HALF = re.compile(rb"\\u[dD][89a-fA-F]")  # of a surrogate pair
MOST_LABELS = 1 << 16
MOST_TOKENS = 1 << 20
DEFAULT_TOKENS = 512  # where no file says how many: what nearly every encoder was trained with
# Their position tables begin with pad_token_id + 1 rows that no text reaches.
OFFSET = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer", "xmod")
AGAIN = "convert the checkpoint again"


@dataclass(frozen=True)
class OnnxFolder:
    """What a folder says. `graph` is its model.onnx, or the only .onnx file; `bytes` are the graph's and its data's.

    task        embedding, classification, tokens or generation
    labels      a classifier's by number
    pooling     mean, cls, last or none; `normalize`: embeddings have length 1
    max_tokens  how many tokens it reads; `width` elements of an embedding, 0 where no file says it
    ours        whether our conversion wrote it
    config      config.json as it stands, `edge` in it
    """

    path: Path
    graph: Path
    bytes: int
    level: str
    task: str
    labels: tuple[str, ...]
    problem: str | None
    pooling: str
    normalize: bool
    max_tokens: int
    width: int
    ours: bool
    config: Mapping[str, Any]


@dataclass(frozen=True)
class DecoderFolder:
    """What the folder of a decoder says beside: sizes in elements, context in tokens, tokens as ids.

    `ends` end an answer; `bos` and `eos` are None where the model has none; `chat_template` is empty for none.
    """

    architecture: str
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    inner: int
    width: int
    vocabulary: int
    context: int
    chat_template: str
    bos: int | None
    eos: int | None
    ends: tuple[int, ...]


def is_folder(path: Path) -> bool:
    """Whether a path is such a folder: it has an .onnx file."""
    return path.is_dir() and any(path.glob("*.onnx"))


def read(path: Path) -> OnnxFolder:
    """What the folder at `path` says, or the folder of the .onnx file that `path` is.

    Raises RequestError where a part is missing (no graph, several, no tokenizer.json), UnsafeFile for a config.json
    that makes no sense (no JSON, id2label that is not labels numbered from 0 on).
    """
    graph = graph_of(path)
    folder = graph.parent
    if not beside(graph, TOKENIZER).is_file():
        raise RequestError(
            f"{folder} has no {TOKENIZER}: an ONNX model without its tokenizer reads no text",
            hint=f"if it is one of texts, put its checkpoint's {TOKENIZER} beside {graph.name}",
        )
    if not beside(graph, CONFIG).is_file():
        raise RequestError(
            f"{folder} has no {CONFIG}, which says what the model is for",
            hint=f"put the checkpoint's {CONFIG} beside {graph.name}",
        )
    config = values(beside(graph, CONFIG))
    size = sum(file.stat().st_size for file in (graph, *data_files(graph)))
    said = our_words(config, folder) if "edge" in config else words_of_others(graph, config)
    return OnnxFolder(folder, graph, size, ours="edge" in config, config=config, **said)


def graph_of(path: Path) -> Path:
    """The .onnx file that `path` is or, as a folder, has. Raises ModelNotFound, or RequestError for none or several."""
    if path.is_file() and path.suffix == ".onnx":
        return path
    if not path.is_dir():
        raise ModelNotFound(f"there is no ONNX folder {path}", hint="check the path")
    graphs = sorted(path.glob("*.onnx"))
    if (path / GRAPH) in graphs:
        return path / GRAPH
    if len(graphs) != 1:
        names = ", ".join(graph.name for graph in graphs[:8])
        raise RequestError(
            f"{path} has {f'{len(graphs)} .onnx files' if graphs else 'no .onnx file'}",
            hint=f"name one of {names}" if graphs else f"`edge convert CHECKPOINT --to onnx` writes {GRAPH}",
        )
    return graphs[0]


def beside(graph: Path, name: str) -> Path:
    """Where a file of a graph's folder is: beside it, or above it where the folder is one called onnx."""
    own = graph.parent / name
    return graph.parent.parent / name if graph.parent.name == "onnx" and not own.exists() else own


def data_files(graph: Path) -> list[Path]:
    """The files with a graph's weights as exporters call them; which ones it names only the graph says."""
    names = (f"{graph.name}.data", f"{graph.name}_data")
    return [path for name in names if (path := graph.parent / name).is_file()]


def our_words(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The object that our conversion wrote. Raises UnsafeFile where it is not what it writes."""
    said = config["edge"]
    try:
        labels = tuple(said["labels"])
        words: dict[str, Any] = {
            "level": said["level"], "task": said["task"], "labels": labels, "problem": said.get("problem"),
            "pooling": said["pooling"], "normalize": said["normalize"],
            "max_tokens": said["max_tokens"], "width": said["width"],
        }  # fmt: skip
        sound = (
            isinstance(said["labels"], list)
            and all(isinstance(label, str) for label in labels)
            and isinstance(words["level"], str)
            and words["task"] in TASKS
            and words["problem"] in (None, *PROBLEMS)
            and words["pooling"] in POOLINGS
            and isinstance(words["normalize"], bool)
            and is_count(words["max_tokens"])
            and is_count(words["width"])
        )
    except (TypeError, KeyError, AttributeError):
        sound = False
    if not sound:
        raise UnsafeFile(f"{folder / CONFIG} has an object `edge` that makes no sense", hint=AGAIN)
    needs_labels = words["task"] in ("classification", "tokens")
    if needs_labels and not labels:
        raise UnsafeFile(f"{folder / CONFIG} says {words['task']} and names no labels", hint=AGAIN)
    if needs_labels and "id2label" in config and labels_of(config, folder) != labels:
        raise UnsafeFile(f"{folder / CONFIG} has two lists of labels, id2label and edge.labels", hint=AGAIN)
    return words


def decoder_of(folder: OnnxFolder) -> DecoderFolder:
    """What a folder whose task is generation says. Raises RequestError for others, UnsafeFile for nonsense."""
    if folder.task != "generation" or not folder.ours:
        kind = "a decoder that was exported elsewhere" if folder.task == "generation" else "no decoder"
        raise RequestError(
            f"{folder.path.name} is {kind}: chat and generate do not run it",
            hint="`edge convert CHECKPOINT --to onnx` of a chat model writes one that they run",
        )
    said = folder.config["edge"]
    counts = ("layers", "heads", "kv_heads", "head_size", "inner", "width", "vocabulary", "context")
    template, ends = said.get("chat_template") or "", said.get("ends")
    ids = [said.get("bos"), said.get("eos"), *(ends if isinstance(ends, list) else [])]
    if (
        not all(is_count(said.get(name)) for name in counts)
        or not isinstance(template, str)
        or not isinstance(said.get("architecture"), str)
        or not isinstance(ends, list)
        or not all(one is None or (type(one) is int and 0 <= one < said["vocabulary"]) for one in ids)
        or None in ends
        or said["heads"] % said["kv_heads"]
    ):
        raise UnsafeFile(f"{folder.path / CONFIG} has an object `edge` that makes no sense", hint=AGAIN)
    return DecoderFolder(
        architecture=said["architecture"],
        **{name: said[name] for name in counts},
        chat_template=template,
        bos=ids[0],
        eos=ids[1],
        ends=tuple(ends),
    )


def words_of_others(graph: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The same of a folder made elsewhere, from the files that transformers and sentence-transformers write."""
    task = task_of(config)
    classifies = task in ("classification", "tokens")
    problem = config.get("problem_type")
    if problem not in (None, *PROBLEMS):
        raise UnsafeFile(
            f"{CONFIG} has problem_type {problem!r:.60}", hint=f"transformers knows {', '.join(PROBLEMS)}"
        )
    pooling, normalize = pooled(graph) if task == "embedding" else ("none", False)
    width = next((config[key] for key in ("hidden_size", "dim", "d_model") if is_count(config.get(key))), 0)
    return {
        "level": "",
        "task": task,
        "labels": labels_of(config, graph.parent) if classifies else (),
        "problem": problem if classifies else None,
        "pooling": pooling,
        "normalize": normalize,
        "max_tokens": tokens_read(graph, config),
        "width": width,
    }


def task_of(config: Mapping[str, Any]) -> str:
    """What its class does; one that is not named gives hidden states."""
    classes = config.get("architectures")
    name = classes[0] if isinstance(classes, list) and classes else ""
    return next((task for end, task in CLASSES.items() if str(name).endswith(end)), "embedding")


def labels_of(config: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
    """A classifier's labels by their number; transformers leaves out what are its two defaults.

    Raises UnsafeFile where they are not texts numbered from 0 on, or label2id numbers them otherwise.
    """
    named, back = config.get("id2label"), config.get("label2id")
    if named is None:
        count = config.get("num_labels", 2)
        if not is_count(count) or count > MOST_LABELS:
            raise UnsafeFile(
                f"{folder / CONFIG} has num_labels {count!r:.40}", hint="check where it came from"
            )
        return tuple(f"LABEL_{index}" for index in range(count))
    if (
        not isinstance(named, dict)
        or not 0 < len(named) <= MOST_LABELS
        or set(named) != {str(index) for index in range(len(named))}
        or not all(isinstance(text, str) for text in named.values())
    ):
        raise UnsafeFile(
            f"{folder / CONFIG}'s id2label is no list of labels numbered from 0 on",
            hint="check where it came from",
        )
    labels = tuple(named[str(index)] for index in range(len(named)))
    if isinstance(back, dict) and len(set(labels)) == len(labels):
        # {} and other stale tables name none of the labels: transformers goes by id2label alone
        wrong = [label for index, label in enumerate(labels) if back.get(label, index) != index]
        if wrong:
            raise UnsafeFile(
                f"{folder / CONFIG} numbers {wrong[0]!r:.60} differently in id2label and label2id",
                hint="check which of them the model was trained with",
            )
    return labels


def pooled(graph: Path) -> tuple[str, bool]:
    """How a sentence-transformers folder makes an embedding, and whether its length is 1; ("none", False) elsewhere.

    Raises RequestError for a way of pooling, or a module, that is not known.
    """
    modules, pooling = beside(graph, "modules.json"), beside(graph, "1_Pooling/config.json")
    if not modules.is_file():
        return (way_of(values(pooling)), False) if pooling.is_file() else ("none", False)
    listed = parsed(modules)
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise UnsafeFile(f"{modules} is no list of modules", hint="download it again")
    kinds = [str(one.get("type")).rpartition(".")[2] for one in listed]
    for kind in kinds:
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise RequestError(
                f"modules.json has a {kind[:40]} module, which is not computed here",
                hint="known are Transformer, Pooling and Normalize",
            )
    if "Pooling" in kinds and not pooling.is_file():
        raise RequestError(
            f"{graph.parent} has no 1_Pooling/config.json, and modules.json names it",
            hint="put the checkpoint's beside it",
        )
    return way_of(values(pooling)) if "Pooling" in kinds else "none", "Normalize" in kinds


def way_of(said: Mapping[str, Any]) -> str:
    """mean, cls or last. Raises RequestError for other ways, for several at once and for none."""
    chosen = [name for name, on in said.items() if name.startswith("pooling_mode_") and on is True]
    found = (
        MODES.get(str(said["pooling_mode"]))
        if "pooling_mode" in said
        else (FLAGS.get(chosen[0]) if len(chosen) == 1 else None)
    )
    if found is None:
        what = str(said.get("pooling_mode") or " + ".join(chosen) or "none")
        raise RequestError(
            f"1_Pooling/config.json pools by {what[:80]}", hint="known are mean, the first token and the last"
        )
    return found


def tokens_read(graph: Path, config: Mapping[str, Any]) -> int:
    """The least of what its files say of how many tokens it reads of a text, special ones included."""
    limits: list[Any] = []
    for name, key in (
        ("sentence_bert_config.json", "max_seq_length"),
        ("tokenizer_config.json", "model_max_length"),
    ):
        if (file := beside(graph, name)).is_file():
            limits.append(values(file).get(key))
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int) and config.get("model_type") in OFFSET:
        pad = config.get("pad_token_id", 1)
        positions -= pad + 1 if isinstance(pad, int) else 0
    counts: list[int] = [limit for limit in (*limits, positions) if is_count(limit)]
    return min(counts, default=DEFAULT_TOKENS)


def is_count(value: Any) -> bool:
    """Whether it is a number of tokens, labels or elements."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MOST_TOKENS


def values(path: Path) -> Mapping[str, Any]:
    """A JSON object. Raises UnsafeFile for anything else."""
    found = parsed(path)
    if not isinstance(found, dict):
        raise UnsafeFile(f"{path} is no JSON object", hint="download it again")
    return found


def parsed(path: Path) -> Any:
    """What a small JSON file holds. Raises UnsafeFile where it is none."""
    with path.open("rb") as file:
        text = file.read(MAX_JSON + 1)
    try:
        if len(text) > MAX_JSON:
            raise ValueError(f"it is longer than {MAX_JSON:,} bytes")
        found = json.loads(text)
        if HALF.search(text):
            json.dumps(found, ensure_ascii=False).encode()  # half a pair: nothing can print or write it
        return found
    except (ValueError, RecursionError) as error:
        raise UnsafeFile(f"{path} is no JSON: {error}"[:200], hint="download it again") from None
