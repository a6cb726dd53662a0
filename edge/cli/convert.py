"""`edge convert`: a checkpoint into GGUF files, and back, or into ONNX folders, each with its certificate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edge.cli import convert_options as options
from edge.cli import convert_output as output
from edge.cli.ended import by_exception
from edge.cli.output import emit_json, json_option
from edge.cli.progress import bars
from edge.cli.references import complete_ref, goal_option
from edge.errors import RequestError

path_option = click.Path(path_type=Path)


@click.command()
@click.argument("source", required=False, shell_complete=complete_ref)
@click.option(
    "--to",
    type=click.Choice(["gguf", "onnx", "safetensors"]),
    default="gguf",
    show_default=True,
    help="What to make.",
)
@click.option(
    "--level", metavar="L,L", help="Levels, separated by commas; --levels lists them.  [f16; onnx: int8]"
)
@click.option("--out", type=path_option, default=Path(), help="Folder to write into.  [this one]")
@click.option("--name", metavar="N", help="Beginning of the files' names.  [the source's]")
@click.option("--imatrix", type=path_option, metavar="FILE", help="Importance matrix of llama.cpp's kind.")
@click.option("--calibrate", metavar="TEXT|FILE", help="Make an importance matrix from a text, and keep it.")
@click.option(
    "--fit",
    metavar="SIZE",
    help="With --calibrate: choose each tensor's type so that the file has at most this size.",
)
@click.option("--bpw", type=float, metavar="X", help="With --calibrate: the same, for so many bits a weight.")
@click.option(
    "--for-host",
    is_flag=True,
    help="Choose the level that this machine should run, by --goal; with --fit, the fastest mixture that is as good "
    "as the usual level of that size.",
)
@goal_option
@click.option("--dry-run", is_flag=True, help="Say what the files would weigh, and write none.")
@click.option("--no-proof", is_flag=True, help="Make no certificate; the file says so.")
@click.option("--check", type=path_option, metavar="FILE", help="Certify a GGUF file made elsewhere.")
@click.option("--against", metavar="SOURCE", help="The checkpoint that the checked file was made of.")
@click.option("--base", metavar="SOURCE", help="The checkpoint that a LoRA adapter was trained on.")
@click.option("--levels", "list_levels", is_flag=True, help="List the levels of --to, with bits a weight.")
@click.option("--agreement", type=path_option, metavar="FILE", help="Compare ONNX levels on a text's lines.")
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
    fit: str | None,
    bpw: float | None,
    for_host: bool,
    goal: tuple[str, ...],
    dry_run: bool,
    no_proof: bool,
    check: Path | None,
    against: str | None,
    base: str | None,
    list_levels: bool,
    agreement: Path | None,
    threads: int | None,
    max_buffer: str | None,
    types: tuple[str, ...],
    output_type: str | None,
    embedding_type: str | None,
    prune_layers: str | None,
    as_json: bool,
) -> None:
    """Make GGUF files or ONNX folders of a checkpoint, proven; and back.

    SOURCE is a folder with config.json, safetensors and tokenizer files, a GGUF file, or a model as `edge pull`
    takes it (a name, hf:…, pypi:…). Each file is compared with a reference that computes from the source's weights,
    and its certificate is written beside it. The folder of a LoRA adapter becomes a GGUF adapter for
    `edge chat --lora`.

    \b
      edge convert ./checkpoint --level f16,q8_0,q4_k_m
      edge convert ./checkpoint --level iq2_xs --calibrate notes.txt
      edge convert ./checkpoint --fit 80MiB --calibrate notes.txt
      edge convert ./checkpoint --for-host
      edge convert ./classifier --to onnx --level fp32,int8
      edge convert model.gguf --to safetensors

    What was interrupted goes on where it stopped when the same command is given again; ONNX folders begin anew.
    """
    if goal and not for_host:
        raise RequestError("--goal chooses among levels", hint="give --for-host with it")
    if list_levels:
        options.refuse("--levels", only=options.LISTING)
        if to == "onnx":
            from edge.convert.onnx.level_table import level_table as onnx_table

            show(onnx_table(), output.onnx_levels, as_json)
        else:
            from edge.convert.level_table import level_table

            show(level_table(), output.levels, as_json)
    elif check:
        if not against:
            raise RequestError(
                "--check needs --against", hint="name the checkpoint that the file was made of"
            )
        options.refuse("--check", only=options.CHECKING)
        from edge.convert.check import check as certify

        show(certify(check, located(against)), output.certificate, as_json)
    elif source is None:
        raise RequestError("nothing to convert is named", hint="give a folder, a GGUF file or a model's name")
    elif to == "safetensors":
        options.refuse("--to safetensors", only=options.BACK)
        from edge.convert.source import title_of
        from edge.convert.to_safetensors import to_safetensors

        path, size = checkpoint_of(source), options.buffer_of(max_buffer)
        dtype = level.strip().lower() if level else None
        found = to_safetensors(path, out / title_of(path, name), level=dtype, max_buffer=size)
        show(found, output.written, as_json)
    elif to == "onnx":
        options.refuse("--to onnx", only=options.ONNX)
        from edge.convert.onnx import to_onnx

        path, wanted = located(source), options.levels_of(level or "int8")
        if trained(path):
            options.refuse("a trained model", never=options.TRAINED)
            from edge.convert.onnx.headed import export

            levels = wanted if level else ()
            show(
                export(path, out, name=name or path.name, levels=levels, prove=not no_proof),
                output.exported,
                as_json,
            )
            return
        if dry_run:
            show(to_onnx.sizes(path, wanted), output.onnx_sizes, as_json)
            return
        with bars() as report:
            folders = to_onnx.convert(
                path, wanted, out, name=name, prove=not no_proof, agreement=agreement, report=report
            )
        show(folders, output.onnx_made, as_json)
    else:
        path = checkpoint_of(source)
        wanted = options.levels_of(level or "f16")
        if adapter(path):
            options.refuse("a LoRA adapter", only=options.ADAPTER)
            if len(wanted) != 1:
                raise RequestError("an adapter is written at one level", hint="for example --level f16")
            from edge.convert.lora import convert_adapter
            from edge.convert.source import title_of

            target = out / f"{title_of(path, name)}-lora-{wanted[0]}.gguf"
            at = located(base) if base else None
            show(convert_adapter(path, target, base=at, level=wanted[0]), output.adapter, as_json)
            return
        options.refuse("making GGUF files of a model", never=options.FOREIGN)
        settings = options.settings_of(threads, max_buffer, types, output_type, embedding_type, prune_layers)
        if fit is not None or bpw is not None:
            options.refuse("--bpw" if fit is None else "--fit", never=options.LEVELLED)
            budget, (text, called) = options.room(fit, bpw), options.to_measure_on(calibrate)
            from edge.cli.for_host import rates_for_host

            rates = rates_for_host() if for_host else None
            with by_exception(), bars() as report:  # the whole model at F16 lies in a folder that has to go
                settings = options.weighed(settings, path, imatrix, None, out, name, report)
                from edge.convert.fit import fit as squeezed

                one = squeezed(
                    path,
                    text,
                    out,
                    size=budget,
                    bpw=bpw,
                    name=name,
                    settings=settings,
                    calibrate=None if imatrix else called,
                    prove=not no_proof,
                    rates=rates,
                    report=report,
                )
            show(one, output.fitted, as_json)
            if for_host and not one.level:
                click.echo(
                    "edge: no usual level to be as good as: these types are the best, not the fastest",
                    err=True,
                )
            return
        if for_host:
            from edge.cli.for_host import level_for_host

            options.refuse("--for-host", never=options.CHOSEN)
            picked = level_for_host(source, goal, name, bool(imatrix or calibrate))
            if picked is None:
                if as_json:
                    emit_json([])
                return
            wanted = [picked]
        from edge.convert.files import check_levels
        from edge.convert.to_gguf import convert, sizes

        check_levels(wanted)  # before a matrix is collected, which takes minutes
        if dry_run:
            show(sizes(path, wanted, name=name, settings=settings), output.sizes, as_json)
            return
        with bars() as report:
            settings = options.weighed(settings, path, imatrix, calibrate, out, name, report)
            try:
                made = convert(
                    path, wanted, out, name=name, settings=settings, prove=not no_proof, report=report
                )
            except KeyboardInterrupt:
                click.echo("\nthe same command goes on where this one stops", err=True)
                raise
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


def checkpoint_of(source: str) -> Path:
    """What has a GGUF form, or came from one. Raises RequestError for what `edge train` made."""
    path = located(source)
    if trained(path):
        raise RequestError(f"{source} is a trained head with its encoder", hint="export it with --to onnx")
    return path


def trained(path: Path) -> bool:
    """Whether a folder holds what `edge train` made."""
    from edge.tasks.head import is_headed

    return is_headed(path)


def adapter(path: Path) -> bool:
    """Whether a folder holds a LoRA adapter, as `edge show` and `edge plan` see it."""
    from edge.store.checkpoints import is_adapter

    return is_adapter([file.name for file in path.glob("*")])
