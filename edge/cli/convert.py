"""`edge convert`: a checkpoint into GGUF files, each with its certificate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge.cli.output import emit_json, json_option, size, table
from edge.cli.references import complete_ref
from edge.errors import RequestError

if TYPE_CHECKING:
    from edge.convert.to_gguf import Made


@click.command()
@click.argument("source", shell_complete=complete_ref)
@click.option("--to", type=click.Choice(["gguf"]), default="gguf", show_default=True, help="What to make.")
@click.option(
    "--level", default="f16", show_default=True, help="Levels, separated by commas: f16,q8_0,q4_k_m."
)
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path(), help="Folder to write into.  [this one]"
)
@click.option("--name", metavar="N", help="Beginning of the files' names.  [the source's]")
@click.option("--no-proof", is_flag=True, help="Make no certificate; the file says so.")
@click.option(
    "--threads", type=click.IntRange(1, 512), metavar="N", help="Threads of the quantizer.  [all cores]"
)
@click.option("--max-buffer", metavar="SIZE", help='Rows held in memory at once, such as "64MiB".  [256MiB]')
@click.option(
    "--tensor-type", "types", multiple=True, metavar="REGEX=TYPE", help="Type of the tensors that match."
)
@click.option("--output-type", metavar="TYPE", help="Type of the output matrix.")
@click.option("--embedding-type", metavar="TYPE", help="Type of the token embedding.")
@click.option("--prune-layers", metavar="N,N", help="Layers to leave out; no certificate can be made then.")
@json_option
def command(
    source: str,
    to: str,
    level: str,
    out: Path,
    name: str | None,
    no_proof: bool,
    threads: int | None,
    max_buffer: str | None,
    types: tuple[str, ...],
    output_type: str | None,
    embedding_type: str | None,
    prune_layers: str | None,
    as_json: bool,
) -> None:
    """Make GGUF files of a checkpoint, proven.

    SOURCE is a folder with config.json, safetensors and tokenizer files, or a model that `edge list` shows. Each
    file is compared with a reference that computes from the source's weights, and its certificate is written
    beside it. Known so far: LlamaForCausalLM and MistralForCausalLM.
    """
    from edge import store
    from edge.convert.quantize import MAX_BUFFER, Settings
    from edge.convert.to_gguf import convert
    from edge.planner import parse_size

    settings = Settings(
        threads=threads or 0,
        max_buffer=parse_size(max_buffer) if max_buffer else MAX_BUFFER,
        tensor_types=tuple(pair(text) for text in types),
        output_type=output_type,
        embedding_type=embedding_type,
        prune_layers=tuple(numbers(prune_layers)) if prune_layers else (),
    )
    wanted = [part.strip().lower() for part in level.split(",") if part.strip()]
    prove = not (no_proof or settings.prune_layers)
    made = convert(store.resolve(source).path, wanted, out, name=name, settings=settings, prove=prove)
    if as_json:
        emit_json(made)
    else:
        click.echo(table([row(one) for one in made], HEADER))


HEADER = ("level", "size", "bits/weight", "seconds", "logit error", "kl divergence", "top-1", "file")


def row(one: Made) -> tuple[str, ...]:
    """One line of the closing table."""
    from edge import gguf_header

    header = gguf_header.read(one.path)
    bits = 8 * sum(tensor.bytes for tensor in header.tensors) / header.parameters
    seen = one.certificate.comparison if one.certificate else None
    figures = (
        (f"{seen.logit_error:.5f}", f"{seen.kl_divergence:.6f}", f"{seen.top1_agreement:.1%}")
        if seen
        else ("–",) * 3
    )
    return one.level, size(one.bytes), f"{bits:.2f}", f"{one.seconds:.1f}", *figures, str(one.path)


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
