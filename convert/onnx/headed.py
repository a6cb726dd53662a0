"""A trained head and its encoder as one ONNX folder: the encoder's graph, and one multiplication more."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge import onnx_folder
from edge.errors import ConversionError, RequestError
from edge.onnx.check import check
from edge.onnx.encoder import OnnxEncoder
from edge.onnx_folder import CERTIFICATE, CONFIG, DATA, GRAPH, TOKENIZER, OnnxFolder
from edge.store.content import digest
from edge.tasks import head as heads
from edge.tasks.encoder import Array, Encoder
from edge.tasks.head import HeadedEncoder, LinearHead

from .. import proof
from ..drafts import reserve
from ..source import title_of
from .certificate import Certificate, of_folder
from .folder import check_free, disk_errors, draft, name_it, put, weights_bytes, write_certificate
from .model import EMBEDDING, LOGITS

BOUND = 1e-5  # most that logits may be off, relative to the greatest: the encoder's part is the very same
WEIGHT, BIAS = "edge.head.weight", "edge.head.bias"


@dataclass(frozen=True)
class Exported:
    """A folder that was written; `bytes` are its graph's and its data's."""

    path: Path
    level: str
    bytes: int
    certificate: Certificate | None


def export(path: Path, out: Path, *, name: str, levels: Sequence[str] = (), prove: bool = True) -> Exported:
    """Write the trained model in `path` as the folder `out/NAME-LEVEL/`, its level that of its encoder.

    Raises RequestError for another level, for a name that leads elsewhere and for an encoder that is no ONNX folder
    of ours, StoreError for what the disk refuses, UnsafeFile and BadONNX for a damaged model, ConversionError where
    the graph does not compute the same.
    """
    head, source = heads.read(path), ours(heads.encoder_of(path))
    wrong = [level for level in levels if level != source.level]
    if wrong:
        raise RequestError(
            f"{name} was trained on an encoder at {source.level}, so it cannot be written at {wrong[0]}",
            hint=f"leave --level out, or convert the encoder to {wrong[0]} and train on that",
        )
    target = out / f"{title_of(path, name)}-{source.level}"
    check_free([target])
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    reserve(out, source.bytes + head.weight.nbytes)
    with draft(target) as folder:
        with disk_errors(out):
            onnx.save(joined(source, head), folder / GRAPH)
            for file in (DATA, TOKENIZER):
                if (source.path / file).exists():
                    shutil.copyfile(source.path / file, folder / file)
            put(folder / CONFIG, json.dumps(described(source, head), indent=2, ensure_ascii=False) + "\n")
        certificate = certified(path, folder, head, source, name) if prove else None
        if certificate:
            with disk_errors(out):
                write_certificate(folder, asdict(certificate))
        check_free([target])
        name_it(folder, target)
    return Exported(target, source.level, weights_bytes(target), certificate)


def ours(encoder: Path) -> OnnxFolder:
    """The encoder's folder.

    Raises RequestError for a GGUF file and for a graph that was made elsewhere, BadONNX for a damaged one.
    """
    if encoder.suffix == ".gguf":
        raise RequestError(
            "the head was trained on a GGUF encoder, which has no ONNX graph",
            hint="convert the encoder's checkpoint with --to onnx, train on that, and export it",
        )
    folder = onnx_folder.read(encoder)
    check(folder.graph)
    if not folder.ours:
        raise RequestError(
            "the head was trained on an ONNX encoder that was made elsewhere",
            hint="convert the encoder's checkpoint with --to onnx, train on that, and export it",
        )
    return folder


def joined(source: OnnxFolder, head: LinearHead) -> onnx.ModelProto:
    """The encoder's graph with logits = weight · embedding + bias as its only output; data beside it stays there."""
    model = onnx.load(source.graph, load_external_data=False)
    graph = model.graph
    if EMBEDDING not in {output.name for output in graph.output}:
        raise ConversionError(f"{source.graph} has no output {EMBEDDING}", hint="convert the encoder again")
    others = {output.name for output in graph.output} - {EMBEDDING}
    for node in [node for node in graph.node if set(node.output) <= others]:
        graph.node.remove(node)
    del graph.output[:]
    graph.initializer.append(numpy_helper.from_array(head.weight, WEIGHT))
    graph.initializer.append(numpy_helper.from_array(head.bias, BIAS))
    graph.node.append(
        helper.make_node("Gemm", [EMBEDDING, WEIGHT, BIAS], [LOGITS], name="edge.head", transB=1)
    )
    shape: list[str | int | None] = ["batch", len(head.labels)]
    graph.output.append(helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, shape))
    return model


def described(source: OnnxFolder, head: LinearHead) -> dict[str, Any]:
    """The encoder's config.json as that of a classifier."""
    numbered = list(enumerate(head.labels))
    problem = "single_label_classification"
    said = {
        **source.config["edge"],
        "task": "classification",
        "labels": list(head.labels),
        "problem": problem,
        "pooling": "none",
        "normalize": False,
    }
    return {
        **source.config,
        "id2label": {str(number): label for number, label in numbered},
        "label2id": {label: number for number, label in numbered},
        "problem_type": problem,
        "edge": said,
    }


def certified(path: Path, folder: Path, head: LinearHead, source: OnnxFolder, name: str) -> Certificate:
    """Run the folder beside the model that `edge classify` runs, and compare their logits.

    Raises ConversionError where they differ by more than rounding.
    """
    alone = OnnxEncoder(source.path, name)
    with closing(HeadedEncoder(alone, head, name, path)) as model, closing(OnnxEncoder(folder, name)) as one:
        texts = list(proof.TEXTS)
        reference, tokens = answered(model, texts)
        theirs, _ = answered(one, texts)
        padded = np.stack(one.run(one.tokenize(texts)))
        together = np.stack(model.run(model.tokenize(texts)))
    error = max(proof.error(theirs, reference), proof.error(padded, together))
    if not error <= BOUND:
        raise ConversionError(
            f"the graph does not compute what {name} does: its logits differ by {error:.3g}",
            hint="this is a bug",
        )
    encoder = encoder_certificate(source.path / CERTIFICATE)
    files = (heads.HEAD, heads.WEIGHTS, f"{heads.ENCODER}/{source.graph.name}")
    made_of = proof.Reference(
        source={file: digest(path / file, lambda step: None) for file in files},
        tokenizer=encoder.get("tokenizer", {}),
        ids=np.empty(0),
        logits=reference,
    )
    comparison = proof.Comparison(
        tokens=tokens,
        logit_error=error,
        top1_agreement=float((theirs.argmax(axis=1) == reference.argmax(axis=1)).mean()),
    )
    types = {**encoder.get("tensor_types", {}), WEIGHT: "float32", BIAS: "float32"}
    certificate = of_folder(folder, source.level, types, made_of, comparison)
    return replace(certificate, padded_error=proof.error(padded, theirs))


def answered(model: Encoder, texts: Sequence[str]) -> tuple[Array, int]:
    """Logits (texts, labels) of texts one by one, and how many tokens they are."""
    tokens = model.tokenize(texts)
    return np.stack([model.run([one])[0] for one in tokens]), sum(len(one.ids) for one in tokens)


def encoder_certificate(path: Path) -> Mapping[str, Any]:
    """What the encoder's certificate says, where there is one that can be read."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
