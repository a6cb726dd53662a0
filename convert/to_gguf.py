"""A checkpoint in, GGUF files out: one read of the source for all levels."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from edge.errors import ConversionError, RequestError

from . import checkpoint as checkpoints
from . import gguf, numpy_ops, proof, tokenizer
from .checkpoint import Checkpoint
from .families import family_of
from .families.weight import Weight
from .quantize import Settings, levels, quantize

DEFAULT = Settings()


@dataclass(frozen=True)
class Made:
    """One file that was written: its size in bytes, the seconds it took, its certificate if one was made."""

    path: Path
    level: str
    bytes: int
    seconds: float
    certificate: proof.Certificate | None


@dataclass(frozen=True)
class Source:
    """A checkpoint that was understood: its family, its configuration, its tensors' table, its tokenizer."""

    checkpoint: Checkpoint
    family: Any
    config: Any
    table: Sequence[Weight]
    words: tokenizer.Tokenizer
    title: str


def convert(
    source: Path,
    wanted: Sequence[str],
    folder: Path,
    *,
    name: str | None = None,
    settings: Settings = DEFAULT,
    prove: bool = True,
) -> tuple[Made, ...]:
    """Write the checkpoint in `source` as `folder/NAME-LEVEL.gguf` for every level wanted, certificates beside.

    A file gets its name after its certificate is made; `prove=False` makes none, and the file says so. Raises
    RequestError for an unknown level, UnsafeFile for a damaged checkpoint, ConversionError for one that is not
    known, contradicts itself, whose tokenizer llama.cpp cannot reproduce, or whose file does not compute the same.
    """
    unknown = [level for level in wanted if level not in levels()]
    if unknown:
        raise RequestError(f"{unknown[0]!r} is not a level", hint=f"there are {', '.join(levels())}")
    # Only the quantizer can bend a level; without that, the direct ones are written at once.
    plain = settings == replace(DEFAULT, threads=settings.threads, max_buffer=settings.max_buffer)
    made: list[Made] = []
    with ExitStack() as stack:
        original = stack.enter_context(checkpoints.open(source))
        understood = understand(original, name or source.resolve().name)
        folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".edge-", dir=folder)))
        whole = scratch / "whole.gguf"
        reference: proof.Reference | None = None
        for level in wanted:
            started = perf_counter()
            target = folder / f"{understood.title}-{level}.gguf"
            draft = scratch / target.name
            if plain and level in gguf.DIRECT:
                write(understood, draft, level, proven=prove)
            else:
                if not whole.exists():
                    write(understood, whole, lossless(original), proven=prove)
                quantize(whole, draft, level, settings)
            certificate = None
            if prove:
                reference = reference or expected(understood, draft)
                certificate = proof.certify(draft, level, reference, exact=plain)
                proof.write(certificate, target)
            draft.replace(target)
            made.append(Made(target, level, target.stat().st_size, perf_counter() - started, certificate))
    return tuple(made)


def understand(original: Checkpoint, title: str) -> Source:
    """Find the family, check the tensors against the configuration, prove the tokenizer."""
    family = family_of(original.config)
    config = family.read_config(original.config)
    table = matched(original, family.weights(config))
    words = tokenizer.convert(original.path, original.config, config.vocabulary)
    return Source(original, family, config, table, words, title)


def write(source: Source, path: Path, level: str, *, proven: bool) -> None:
    """One direct level of the source."""
    prefix = source.config.gguf_architecture
    fields: dict[str, Any] = {"general.name": source.title, "edge.proof": "certificate" if proven else "none"}
    fields |= {f"{prefix}.{key}": value for key, value in source.family.metadata(source.config).items()}
    if source.words.chat_template:
        fields["tokenizer.chat_template"] = source.words.chat_template
    gguf.write(
        path,
        prefix,
        fields,
        source.table,
        source.checkpoint.float32,
        level=level,
        extra=source.family.extra_tensors(source.config),
        more=lambda writer: tokenizer.add_fields(writer, source.words.fields),
    )


def expected(source: Source, file: Path) -> proof.Reference:
    """What the family's pass computes from the source's weights for the fixed text, in float32."""
    ids = proof.text_ids(file)
    _, logits = source.family.forward(numpy_ops, source.checkpoint.float32, source.config, ids)
    return proof.Reference(source.checkpoint.sha256(), asdict(source.words.proof), ids, logits)


def matched(original: Checkpoint, table: Sequence[Weight]) -> Sequence[Weight]:
    """The table, if the checkpoint has exactly its tensors in exactly its shapes. Raises ConversionError."""
    wanted = {weight.source: weight.shape for weight in table}
    for source, shape in wanted.items():
        if source not in original.tensors:
            raise ConversionError(f"the checkpoint has no tensor {source}", hint="config.json says it should")
        if original.tensors[source].shape != shape:
            raise ConversionError(
                f"{source} is {original.tensors[source].shape} and config.json makes it {shape}",
                hint="they are not of the same model",
            )
    # Rotation frequencies follow from the configuration; old checkpoints carry them all the same.
    extra = [
        name for name in original.tensors if name not in wanted and not name.endswith("rotary_emb.inv_freq")
    ]
    if "lm_head.weight" in extra and "lm_head.weight" not in wanted:
        extra.remove("lm_head.weight")  # a tied output that was saved as well
    if extra:
        raise ConversionError(
            f"the checkpoint has {len(extra)} tensors that this family does not know, {extra[0]} among them",
            hint="it may be a variant that is not known here",
        )
    return table


def lossless(original: Checkpoint) -> str:
    """The level that holds every weight of the source as it is."""
    kinds = {tensor.dtype for tensor in original.tensors.values()}
    return "bf16" if kinds == {"BF16"} else "f16" if kinds == {"F16"} else "f32"
