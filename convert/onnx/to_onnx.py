"""A checkpoint in, ONNX folders out: one for each level, proven before it has its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from edge.errors import RequestError
from edge.onnx_folder import GRAPH
from edge.peak import peak_rss_bytes

from .. import checkpoint as checkpoints
from ..drafts import reserve
from ..families.encoder import plain_notes
from ..source import title_of
from ..stream import Report, silent
from ..understood import Understood, understand
from . import certificate as certificates
from . import computed, generation, graph, tokenizer_json
from .certificate import Certificate
from .decoder import check_family, decoder
from .folder import (
    check_free,
    describe,
    disk_errors,
    draft,
    name_it,
    weights_bytes,
    write_certificate,
    write_texts,
)
from .graph import Graph
from .levels import check_levels
from .model import encoder


@dataclass(frozen=True)
class Size:
    """A folder that could be written: its graph's weights in bytes, and bits of each."""

    level: str
    bytes: int
    bits_per_weight: float


@dataclass(frozen=True)
class Made:
    """One folder that was written; sizes in bytes, `seconds` of encoding and writing it.

    `bits_per_weight` count what goes with the weights, such as scales. `notes` are what a user should know.
    """

    path: Path
    level: str
    bytes: int
    bits_per_weight: float
    seconds: float
    peak_rss_bytes: int
    certificate: Certificate | None
    notes: tuple[str, ...]


def convert(
    path: Path,
    wanted: Sequence[str],
    out: Path,
    *,
    name: str | None = None,
    prove: bool = True,
    agreement: Path | None = None,
    report: Report = silent,
    largest: int = graph.LARGEST,
) -> tuple[Made, ...]:
    """Write the checkpoint at `path` as folders `out/NAME-LEVEL/`, as edge/onnx_folder.py describes them.

    All get their names together, after the last is proven; `prove=False` leaves the certificates out. The lines of
    the text `agreement` are answered by every level, and each certificate says how it agrees with fp32, or with the
    first level. Weights beyond `largest` bytes go into a file of their own.

    Raises RequestError for an unknown level, StoreError for what the disk refuses and for folders that are there,
    UnsafeFile for a checkpoint that is damaged, ConversionError for one that is not known, cannot be encoded or
    whose graph does not compute the same.
    """
    check_levels(wanted)
    if agreement and not prove:
        raise RequestError(
            "without certificates nothing says how levels agree", hint="leave one of the two out"
        )
    if agreement and len(wanted) < 2:
        raise RequestError(
            "--agreement compares levels, and there is one", hint="name several, as --level fp32,int8"
        )
    targets = [out / f"{title_of(path, name)}-{level}" for level in wanted]
    check_free(targets)
    lines = certificates.lines_of(agreement) if agreement else []
    with opened(path) as original, ExitStack() as stack:
        model = understood(original)
        if agreement and generates(model.config):
            raise RequestError(
                "levels of a model that writes have no labels to agree on",
                hint="leave --agreement out: certificates say how likely each takes the next token to be",
            )
        words = tokenizer_json.read(
            original.path, model.config.vocabulary, original.config["architectures"][0]
        )
        most = tokens_read(model, words)
        graphs = {level: graph_of(model, level, targets[0].name) for level in wanted}
        decodes = generates(model.config)
        said = generation.described(model) if decodes else {}
        with disk_errors(out):
            out.mkdir(parents=True, exist_ok=True)
        reserve(out, sum(one.weight_bytes for one in graphs.values()))
        folders = {
            level: stack.enter_context(draft(target)) for level, target in zip(wanted, targets, strict=True)
        }
        seconds = {}
        for level, folder in folders.items():
            started = perf_counter()
            # A decoder's weights are mapped: ONNX Runtime holds what is in model.onnx twice while it loads
            write(graphs[level], folder, level, report, 0 if decodes else largest)
            with disk_errors(out):
                write_texts(folder, describe(model, level, most, said), words)
            seconds[level] = perf_counter() - started
        proofs = prove_all(model, words, most, graphs, folders, report) if prove else {}
        if agreement:
            proofs = agreed(
                proofs, folders, agreement.name, words.encode(lines, most), model.config.task, report
            )
        for level, found in proofs.items():
            with disk_errors(out):
                write_certificate(folders[level], asdict(found))
        sizes = {level: weights_bytes(folder) for level, folder in folders.items()}
        check_free(targets)  # other programs write, too
        for folder, target in zip(folders.values(), targets, strict=True):
            name_it(folder, target)
    return tuple(
        Made(
            path=target,
            level=level,
            bytes=sizes[level],
            bits_per_weight=graphs[level].bits_per_weight,
            seconds=seconds[level],
            peak_rss_bytes=peak_rss_bytes(),
            certificate=proofs.get(level),
            notes=(
                *original.notes,
                *(generation.notes(said) if decodes else plain_notes(model.config)),
                *words.notes,
            ),
        )
        for level, target in zip(wanted, targets, strict=True)
    )


def sizes(path: Path, wanted: Sequence[str]) -> tuple[Size, ...]:
    """What `convert` would write, without writing it. Raises as `convert` does before it writes."""
    check_levels(wanted)
    with opened(path) as original:
        model = understood(original)
        graphs = [graph_of(model, level, "") for level in wanted]
        return tuple(
            Size(level, one.weight_bytes, one.bits_per_weight)
            for level, one in zip(wanted, graphs, strict=True)
        )


def opened(path: Path) -> checkpoints.Checkpoint:
    """The checkpoint in a folder. Raises RequestError for a file."""
    if path.is_file():
        raise RequestError(f"{path.name} is a file", hint="ONNX is made of a checkpoint's folder")
    return checkpoints.open(path)


def understood(original: checkpoints.Checkpoint) -> Understood:
    """Raises ConversionError for a model that has no ONNX form here."""
    model = understand(original)
    if generates(model.config):
        check_family(model)
    return model


def generates(config: Any) -> bool:
    """Whether a configuration is of a decoder that continues a text: the others have a task."""
    return not hasattr(config, "task")


def graph_of(model: Understood, level: str, name: str) -> Graph:
    return (decoder if generates(model.config) else encoder)(model, level, name)


def tokens_read(model: Understood, words: tokenizer_json.Words) -> int:
    """How many tokens of a text are read: what the positions allow, and what tokenizer and pooling files say."""
    said = (model.config.context, getattr(model.config, "reads", 0), words.reads)
    return min(tokens for tokens in said if tokens)


def write(made: Graph, folder: Path, level: str, report: Report, largest: int) -> None:
    """The graph, the weights encoded on the way."""
    total, done = made.weight_bytes, 0

    def progress(written: int) -> None:
        nonlocal done
        done += written
        report(f"writing {level}", done, total)

    with disk_errors(folder.parent):
        graph.write(made, folder / GRAPH, largest=largest, progress=progress)


def prove_all(
    model: Understood,
    words: tokenizer_json.Words,
    most: int,
    graphs: Mapping[str, Graph],
    folders: Mapping[str, Path],
    report: Report,
) -> dict[str, Certificate]:
    """The certificate of every draft. Raises ConversionError where one does not compute what it should."""
    report("proving", 0, len(folders) + 1)
    if generates(model.config):
        expected = generation.expected(model, words)

        def certify(folder: Path, level: str, types: Mapping[str, str]) -> Certificate:
            return generation.certify(folder, level, types, model.config, expected)

    else:
        texts, reference = certificates.expected(model, words, most)

        def certify(folder: Path, level: str, types: Mapping[str, str]) -> Certificate:
            return certificates.certify(folder, level, types, texts, reference)

    found = {}
    for done, (level, folder) in enumerate(folders.items(), 1):
        report("proving", done, len(folders) + 1)
        found[level] = certify(folder, level, graphs[level].types)
    report("proving", len(folders) + 1, len(folders) + 1)
    return found


def agreed(
    proofs: Mapping[str, Certificate],
    folders: Mapping[str, Path],
    name: str,
    texts: Sequence[computed.Text],
    task: str,
    report: Report,
) -> dict[str, Certificate]:
    """The certificates with how their levels answer the texts, beside fp32 or the first."""
    answers = {}
    for done, (level, folder) in enumerate(folders.items()):
        report("comparing levels", done, len(folders))
        answers[level] = computed.answers(computed.session(folder / GRAPH), texts)
    report("comparing levels", len(folders), len(folders))
    beside = "fp32" if "fp32" in answers else next(iter(answers))
    return {
        level: replace(
            proof, agreement=certificates.agreement(name, beside, answers[level], answers[beside], task)
        )
        for level, proof in proofs.items()
    }
