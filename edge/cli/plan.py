"""`edge plan`: what fits and how it would run, before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from edge.cli.options import CONTEXT_HELP, Context
from edge.cli.output import emit_json, json_option, printable, size, table
from edge.cli.references import complete_ref, goal_option
from edge.errors import RequestError

if TYPE_CHECKING:
    from edge.planner import Plan


@click.command()
@click.argument("refs", metavar="REF...", nargs=-1, required=True, shell_complete=complete_ref)
@click.option("--ctx", type=Context(), metavar="N|auto", help=CONTEXT_HELP)
@click.option("--parallel", type=int, default=1, metavar="N", help="Conversations at a time, a context each.")
@click.option(
    "--kv", type=click.Choice(["f16", "q8_0", "q4_0"]), help="Type of keys and values.  [f16, or what fits]"
)
@click.option("--memory", metavar="SIZE", help='Plan for this much, such as "512MiB".')
@click.option("--all", "every", is_flag=True, help="Every file and level of the model, and which to take.")
@goal_option
@json_option
def command(
    refs: tuple[str, ...],
    ctx: int | str | None,
    parallel: int,
    kv: str | None,
    memory: str | None,
    every: bool,
    goal: tuple[str, ...],
    as_json: bool,
) -> None:
    """Say what fits and how it would run, before loading.

    Reads only the file's header. Exits with 4 when it does not fit, naming the nearest setting that does. Several
    models are planned as loaded at once, each with the others beside it.

    With --all REF may be a checkpoint's folder, too. Side by side stand the files of the model that are here and the
    levels it could be converted to: predicted speed for a prompt of 512 tokens, measured divergence (kld, nats a
    token), and the one to take, by default the fastest that is no larger and no worse than Q4_K_M. It reads more: the
    small tensors and some pieces of the model and of the GGUF files beside it, to know which are of one model, and it
    lays out the header of each level, which takes seconds. Either way no connection is opened and no file kept.

    \b
      edge plan smollm2-135m-instruct ./other.gguf --ctx 2048
      edge plan --all ./checkpoint
      edge plan --all smollm2-135m-instruct --goal memory=300MiB --goal speed
    """
    if every:
        refuse_beside_all(parallel, kv)
        if isinstance(ctx, str):
            raise click.UsageError("--all compares at one context: give --ctx a number of tokens")
        if len(refs) > 1:
            raise RequestError("--all compares the files of one model", hint="name one")
        show_all(refs[0], ctx, memory, goal, as_json)
        return
    if goal:
        raise RequestError("--goal chooses among several files", hint="give --all with it")
    if len(refs) > 1:
        if isinstance(ctx, str):
            raise RequestError("--ctx auto is for one model", hint="give several a number of tokens")
        show_together(refs, as_json, ctx=ctx, parallel=parallel, kv=kv, memory=memory)
        return
    from edge.planner import plan

    decided = plan(refs[0], ctx=ctx, parallel=parallel, kv=kv, memory=memory)
    if as_json:
        emit_json(decided)
    else:
        click.echo(describe(decided))
    decided.require_fit()


def refuse_beside_all(parallel: int, kv: str | None) -> None:
    """Raise RequestError for what the comparison has no use for."""
    for option, given in (("--parallel", parallel != 1), ("--kv", kv is not None)):
        if given:
            raise RequestError(
                f"{option} does not go with --all", hint="give it to a plan of the one you take"
            )


def show_all(ref: str, ctx: int | None, memory: str | None, goal: tuple[str, ...], as_json: bool) -> None:
    """Every file form side by side. Raises DoesNotFit when none fits, naming the smallest."""
    from edge.cli.plan_table import side_by_side
    from edge.convert.choices import choices
    from edge.goals import goal_of

    found = choices(ref, goal_of(goal), ctx=ctx, memory=memory)
    if as_json:
        emit_json(found.choice)
    else:
        click.echo(side_by_side(found))
    _ = found.choice.picked  # raises where there is none


def show_together(refs: Sequence[str], as_json: bool, **settings: Any) -> None:
    """Plans of models that are loaded at once. Raises DoesNotFit where they do not fit together."""
    from edge.together import Together, plans

    decided: Together = plans(refs, **settings)
    if as_json:
        emit_json(decided)
    else:
        texts = [describe(one) for one in decided.plans]
        said = [
            ("together", f"{decided.said}; weights above count the models beside"),
            ("fits", "yes" if decided.fits else "no"),
        ]
        click.echo("\n\n".join([*texts, table(said)]))
    decided.require_fit()


def describe(decided: Plan) -> str:
    """A plan as aligned lines: what, how much, why, and what was rejected."""
    need = decided.memory
    rows = [
        ("model", f"{decided.artifact} ({decided.level})"),
        ("backend", f"{decided.backend}: {decided.reason}"),
        ("threads", f"{decided.threads.prefill} for prefill, {decided.threads.decode} for decode"),
        ("context", f"{decided.context} tokens" + (" each" if decided.parallel > 1 else "")),
        ("weights", f"{size(need.weights_bytes)}, {'mapped from the file' if need.mapped else 'read'}"),
        *([("repacked", size(need.repacked_bytes))] if need.repacked_bytes else []),
        ("KV cache", f"{size(need.kv_bytes)} in {decided.kv}" if need.kv_bytes else size(0)),
        ("compute", size(need.compute_bytes)),
        ("logits", size(need.logits_bytes)),
        ("runtime", size(need.runtime_bytes)),
        ("total", f"{size(need.total_bytes)} of {size(need.available_bytes)} available"),
        ("fits", "yes" if decided.fits else f"no: {decided.nearest}"),
        *speeds(decided),
    ]
    if decided.parallel > 1:
        rows.insert(4, ("parallel", f"{decided.parallel} conversations at a time"))
    rejected = [f"{other.choice}: {other.reason}" for other in decided.rejected]
    for label, lines in (("because", decided.reasons), ("rejected", rejected)):
        rows += [(label if not index else "", line) for index, line in enumerate(lines)]
    return printable(table(rows))


def speeds(decided: Plan) -> list[tuple[str, str]]:
    """The predicted speed in lines, or why there is none."""
    speed = decided.speed
    if speed is None:
        return [("speed", decided.speed_reason)]
    together = f", {decided.parallel} conversations together" if decided.parallel > 1 else ""
    prefill = f"{speed.prefill_tps:,.0f} t/s"
    limit = limited(speed.prefill_bound, speed.prefill_fraction)
    if speed.decode_tps is None or speed.decode_fraction is None:
        return [
            ("texts", f"{prefill} of {speed.prompt_tokens} tokens each in batches, {limit}"),
            ("one text", f"{1000 * speed.ttft_s:.1f} ms"),
            ("predicted", decided.speed_reason),
        ]
    return [
        ("prefill", f"{prefill}, {limit}"),
        (
            "decode",
            f"{speed.decode_tps:,.0f} t/s{together}, {limited(speed.decode_bound, speed.decode_fraction)}",
        ),
        ("ttft", f"{speed.ttft_s:.2f} s for a prompt of {speed.prompt_tokens} tokens"),
        ("predicted", decided.speed_reason),
    ]


def limited(bound: str, share: float) -> str:
    """Which limit binds, and how much of that same limit is reached."""
    limit = "memory bandwidth" if bound == "bandwidth" else bound
    return f"limited by {limit}, at {share:.0%} of this host's peak"
