"""A reference to a loaded encoder: the one form there is of it, or the one that measured faster here."""

from __future__ import annotations

from collections.abc import Sequence

from edge import gguf_header
from edge.engine.encoder import GgufEncoder
from edge.errors import RequestError
from edge.onnx.encoder import OnnxEncoder
from edge.tasks import head
from edge.tasks.artifacts import GGUF, HEADED, ONNX, Artifact, artifact, located
from edge.tasks.encoder import Encoder
from edge.tasks.pick import pick


def open_encoder(
    ref: str,
    *,
    backend: str | None = None,
    threads: int | None = None,
    sample: Sequence[str] = (),
    pairs: bool = False,
) -> Encoder:
    """The encoder behind a reference, loaded. Its `reason` says why this form, where there are several.

    ref      an ONNX folder or its .onnx file, a GGUF file, a kept model's name, a folder with several forms, or what
             their names begin with: out/NAME where out/NAME-int8/ or out/NAME-f16.gguf is there
    backend  onnx or gguf, for that form only
    threads  by default one a core
    sample   texts of the kind that will be read, by which several forms are timed; a single one is taken for all
             there is to read, and nothing is timed for it
    pairs    whether a classifier is given pairs, which not every form can read

    Raises ModelNotFound, RequestError for a model that has no such form or writes text, UnsafeFile for damaged files,
    EngineError where the backend refuses.
    """
    name, paths = located(ref)
    forms = [artifact(path) for path in paths]
    if all(form.task == "generation" for form in forms):
        raise RequestError(
            f"{name} writes text and encodes none",
            hint="`edge classify --labels` and `edge chat` use such models",
        )
    forms = [form for form in forms if form.task != "generation"]
    if len(forms) == 1 and forms[0].form == HEADED:
        return headed(forms[0], name, backend, threads)
    wanted = [form for form in forms if backend in (None, form.form)]
    if not wanted:
        assert backend is not None
        there = ", ".join(dict.fromkeys(form.form.upper() for form in forms))
        raise RequestError(
            f"{name} is here as {there}, not as {backend.upper()}",
            hint=f"leave --backend out, or run `edge convert … --to {backend}`",
        )
    if pairs:
        wanted = [form for form in wanted if reads_pairs(form)] or wanted
    if len(wanted) == 1:
        return load(wanted[0], name, threads)
    return pick(name, wanted, lambda form: load(form, name, threads), sample, threads)


def reads_pairs(form: Artifact) -> bool:
    """Whether a classifier's form tells the second text of a pair from the first; llama.cpp has one token type."""
    if form.form == ONNX or form.task != "classification":
        return True
    return gguf_header.read(form.path).get("tokenizer.ggml.token_type_count", int, 1) == 1


def load(form: Artifact, name: str, threads: int | None) -> OnnxEncoder | GgufEncoder:
    """One form in its backend."""
    if form.form == ONNX:
        return OnnxEncoder(form.path, name, threads)
    return GgufEncoder(form.path, name, threads)


def headed(form: Artifact, name: str, backend: str | None, threads: int | None) -> Encoder:
    """A head that `edge train` made, with the encoder kept beside it."""
    below = artifact(head.encoder_of(form.path))
    if backend not in (None, below.form):
        raise RequestError(
            f"{name} was trained on {'GGUF' if below.form == GGUF else 'ONNX'}", hint="leave --backend out"
        )
    trained = head.read(form.path)
    encoder = load(below, name, threads)
    try:
        return head.HeadedEncoder(encoder, trained, name, form.path)
    except BaseException:
        encoder.close()
        raise
