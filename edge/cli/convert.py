"""`edge convert`: a checkpoint into GGUF files and back, each file with its certificate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge.cli import convert_output as output
from edge.cli.output import emit_json, json_option
from edge.cli.progress import bars
from edge.cli.references import complete_ref
from edge.errors import RequestError

if TYPE_CHECKING:
    from edge.convert.quantize import Settings
    from edge.convert.stream import Report

path_option = click.Path(path_type=Path)


@click.command()
@click.argument("source", required=False, shell_complete=complete_ref)
@click.option(
    "--to",
    type=click.Choice(["gguf", "safetensors"]),
    default="gguf",
    show_default=True,
    help="What to make.",
)
@click.option("--level", metavar="L,L", help="Levels, separated by commas: f16,q8_0,q4_k_m.  [f16]")
@click.option("--out", type=path_option, default=Path(), help="Folder to write into.  [this one]")
@click.option("--name", metavar="N", help="Beginning of the files' names.  [the source's]")
@click.option("--imatrix", type=path_option, metavar="FILE", help="Importance matrix of llama.cpp's kind.")
@click.option("--calibrate", metavar="TEXT|FILE", help="Text to make an importance matrix from, kept beside.")
@click.option("--dry-run", is_flag=True, help="Say what the files would weigh, and write none.")
@click.option("--no-proof", is_flag=True, help="Make no certificate; the file says so.")
@click.option("--check", type=path_option, metavar="FILE", help="Certify a GGUF file made elsewhere.")
@click.option("--against", metavar="SOURCE", help="The checkpoint that the checked file was made of.")
@click.option("--base", metavar="SOURCE", help="The checkpoint that a LoRA adapter was trained on.")
@click.option("--levels", "list_levels", is_flag=True, help="List the levels, with bits a weight.")
@click.option("--threads", type=click.IntRange(1, 512), metavar="N", help="Encoding threads.  [all cores]")
@click.option("--max-buffer", metavar="SIZE", help="Weights held in memory at once.  [16MiB]")
@click.option(
    "--tensor-type",
    "types",
    multiple=True,
    metavar="REGEX=TYPE",
    help="Type of the tensors that match, at quantized levels; may be repeated.",
)
@click.option("--output-type", metavar="TYPE", help="Type of the output matrix.")
@click.option("--embedding-type", metavar="TYPE", help="Type of the token embedding.")
@click.option("--prune-layers", metavar="N,N", help="Layers to leave out, counted from 0.")
@json_option
def command(
    source: str | None,
    to: str,
    level: str | None,
    out: Path,
    name: str | None,
    imatrix: Path | None,
    calibrate: str | None,
    dry_run: bool,
    no_proof: bool,
    check: Path | None,
    against: str | None,
    base: str | None,
    list_levels: bool,
    threads: int | None,
    max_buffer: str | None,
    types: tuple[str, ...],
    output_type: str | None,
    embedding_type: str | None,
    prune_layers: str | None,
    as_json: bool,
) -> None:
    """Make GGUF files of a checkpoint, proven; and back.

    SOURCE is a folder with config.json, safetensors and tokenizer files, a GGUF file, or a model as `edge pull`
    takes it (a name, hf:…, pypi:…). Each file is compared with a reference that computes from the source's weights,
    and its certificate is written beside it. The folder of a LoRA adapter becomes a GGUF adapter for
    `edge chat --lora`.

    \b
      edge convert ./checkpoint --level f16,q8_0,q4_k_m
      edge convert ./checkpoint --level iq2_xs --calibrate notes.txt
      edge convert model.gguf --to safetensors

    What was interrupted goes on where it stopped when the same command is given again.
    """
    if list_levels:
        from edge.convert.level_table import level_table

        show(level_table(), output.levels, as_json)
    elif check:
        from edge.convert.check import check as certify

        if not against:
            raise RequestError(
                "--check needs --against", hint="name the checkpoint that the file was made of"
            )
        show(certify(check, located(against)), output.certificate, as_json)
    elif source is None:
        raise RequestError("nothing to convert is named", hint="give a folder, a GGUF file or a model's name")
    elif to == "safetensors":
        from edge.convert.to_safetensors import to_safetensors

        path = located(source)
        show(to_safetensors(path, out / (name or path.stem), level=level), output.written, as_json)
    else:
        path = located(source)
        wanted = [part.strip().lower() for part in (level or "f16").split(",") if part.strip()]
        settings = settings_of(threads, max_buffer, types, output_type, embedding_type, prune_layers)
        if adapter(path):
            from edge.convert.lora import convert_adapter
            from edge.convert.source import title_of

            target = out / f"{name or title_of(path)}-lora-{wanted[0]}.gguf"
            at = located(base) if base else None
            show(convert_adapter(path, target, base=at, level=wanted[0]), output.adapter, as_json)
            return
        from edge.convert.to_gguf import convert, sizes

        if dry_run:
            show(sizes(path, wanted, settings=settings), output.sizes, as_json)
            return
        with bars() as report:
            settings = weighed(settings, path, imatrix, calibrate, out, name, report)
            made = convert(path, wanted, out, name=name, settings=settings, prove=not no_proof, report=report)
        show(made, output.made, as_json)


def show(found: Any, text: Any, as_json: bool) -> None:
    """Print a result as JSON or as `text` puts it."""
    if as_json:
        emit_json(found)
    else:
        click.echo(text(found))


def located(source: str) -> Path:
    from edge.cli.models import offered

    return offered(source).path


def adapter(path: Path) -> bool:
    """Whether a folder holds a LoRA adapter, without importing what converts it."""
    return (path / "adapter_config.json").is_file()


def settings_of(
    threads: int | None,
    max_buffer: str | None,
    types: tuple[str, ...],
    output_type: str | None,
    embedding_type: str | None,
    prune_layers: str | None,
) -> Settings:
    """The options as the library takes them. Raises RequestError for what is malformed."""
    from edge.convert.quantize import MAX_BUFFER, Settings
    from edge.planner import parse_size

    return Settings(
        threads=threads or 0,
        max_buffer=parse_size(max_buffer) if max_buffer else MAX_BUFFER,
        tensor_types=tuple(pair(text) for text in types),
        output_type=output_type,
        embedding_type=embedding_type,
        prune_layers=tuple(numbers(prune_layers)) if prune_layers else (),
    )


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

        text, called = text_of(calibrate)
        importance = collect(path, text, called, out, report=report)
        imatrix = files.write(importance, out / f"{name or title_of(path)}.imatrix.gguf")
    elif imatrix:
        importance = files.read(imatrix)
    else:
        return settings
    return replace(settings, importance=importance.means(), importance_fields=importance.fields(imatrix.name))


def text_of(given: str) -> tuple[str, str]:
    """A calibration text and its name: the content of a file of that name, or the words themselves."""
    from edge.errors import StoreError

    path = Path(given)
    try:
        if len(given) > 1024 or not path.is_file():
            return given, "text"
        return path.read_bytes().decode(), path.name  # as it is: other line ends are other tokens
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{path} cannot be read as text: {error}") from None


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
