"""The options of `edge convert` as the library takes them, refused where they do not go together."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from edge.errors import RequestError, StoreError

if TYPE_CHECKING:
    from edge.convert.quantize import Settings
    from edge.convert.stream import Report

# Parameters by what is done; one that is typed and does not belong is refused rather than passed over.
LISTING = {"list_levels", "to", "as_json"}
CHECKING = {"check", "against", "as_json"}
BACK = {"source", "to", "level", "out", "name", "max_buffer", "as_json"}
ONNX = {"source", "to", "level", "out", "name", "dry_run", "no_proof", "agreement", "as_json"}
TRAINED = {"dry_run", "agreement"}  # to exporting what `edge train` made
ADAPTER = {"source", "to", "level", "out", "name", "base", "as_json"}
LEVELLED = {
    "level",
    "types",
    "output_type",
    "embedding_type",
    "dry_run",
    "goal",
}  # to choosing types by measurement
CHOSEN = {"level", "types", "output_type", "embedding_type", "prune_layers"}  # to a level for the host
FOREIGN = {"check", "against", "base", "list_levels", "agreement"}  # to making GGUF files of a model


def refuse(doing: str, *, only: Collection[str] = (), never: Collection[str] = ()) -> None:
    """Raise RequestError for an option on the command line that `doing` has no use for."""
    ctx = click.get_current_context()
    for parameter in ctx.command.params:
        name = parameter.name or ""
        typed = ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if typed and (name in never or (only and name not in only)):
            called = parameter.opts[0] if isinstance(parameter, click.Option) else name.upper()
            raise RequestError(f"{called} does not go with {doing}", hint="leave it out")


def levels_of(text: str) -> list[str]:
    """The names in a list with commas."""
    return [part.strip().lower() for part in text.split(",") if part.strip()]


def settings_of(
    threads: int | None,
    max_buffer: str | None,
    types: tuple[str, ...],
    output_type: str | None,
    embedding_type: str | None,
    prune_layers: str | None,
) -> Settings:
    """The options as the library takes them. Raises RequestError for what is malformed."""
    from edge.convert.quantize import Settings

    return Settings(
        threads=threads or 0,
        max_buffer=buffer_of(max_buffer),
        tensor_types=tuple(pair(text) for text in types),
        output_type=output_type,
        embedding_type=embedding_type,
        prune_layers=tuple(numbers(prune_layers)) if prune_layers else (),
    )


def buffer_of(size: str | None) -> int:
    """Bytes of weights to hold in memory at once. Raises RequestError for what is no size."""
    from edge.convert.quantize import MAX_BUFFER
    from edge.sizes import parse_size

    return parse_size(size) if size else MAX_BUFFER


def room(fit: str | None, bpw: float | None) -> int | None:
    """Bytes of the file to be, or None where bits a weight are given.

    Raises RequestError for both, and for what is no size or no number of bits.
    """
    from edge.sizes import parse_size

    if fit is not None and bpw is not None:
        raise RequestError("--fit and --bpw are both given", hint="one of them is the budget")
    if bpw is not None and not 0 < bpw <= 32:
        raise RequestError(f"--bpw {bpw:g} is no number of bits a weight", hint="for example 4.25")
    return None if fit is None else parse_size(fit)


def to_measure_on(calibrate: str | None) -> tuple[str, str]:
    """The calibration text itself, and its name. Raises RequestError where there is none."""
    if calibrate is None:
        raise RequestError("tensors are measured on text and none is given", hint="give it with --calibrate")
    return text_of(calibrate)


def weighed(
    settings: Settings,
    path: Path,
    imatrix: Path | None,
    calibrate: str | None,
    out: Path,
    name: str | None,
    report: Report,
) -> Settings:
    """The settings with the importance matrix that was given or is collected now, and kept."""
    from dataclasses import replace

    from edge.convert import imatrix as files

    if imatrix and calibrate:
        raise RequestError("--imatrix and --calibrate are both given", hint="one matrix is used")
    if calibrate:
        from edge.convert.source import title_of
        from edge.convert.to_gguf import calibrate as collect

        title, (text, called) = title_of(path, name), text_of(calibrate)
        importance = collect(path, text, called, out, settings=settings, report=report)
        imatrix = files.write(importance, out / f"{title}.imatrix.gguf")
    elif imatrix:
        importance = files.read(imatrix)
    else:
        return settings
    return replace(settings, importance=importance.means(), importance_fields=importance.fields(imatrix.name))


def text_of(given: str) -> tuple[str, str]:
    """A calibration text and its name: the content of a file of that name, or the words themselves."""
    path = Path(given)
    if not is_file(path):
        if not any(map(str.isspace, given.strip())):
            raise RequestError(
                f"there is no file {given[:80]!r} to calibrate with", hint="or give more words"
            )
        return given, "text"
    try:
        return path.read_bytes().decode(), path.name  # as it is: other line ends are other tokens
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{path} cannot be read as text: {error}") from None


def is_file(path: Path) -> bool:
    """Whether there is such a file; a text too long or too odd for a name is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def pair(text: str) -> tuple[str, str]:
    """REGEX=TYPE, split at its last equals sign."""
    pattern, equals, kind = text.rpartition("=")
    if not (pattern and equals and kind):
        raise RequestError(f"--tensor-type {text!r} is not REGEX=TYPE", hint="for example ffn_down=q6_K")
    return pattern, kind


def numbers(text: str) -> list[int]:
    """Layers from a text such as 3,7."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise RequestError(f"--prune-layers {text!r} is no list of layers", hint="for example 3,7") from None
