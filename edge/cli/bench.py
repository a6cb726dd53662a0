"""`edge bench`: figures for this machine, a peer beside ours in the same run. One small module a verb."""

from __future__ import annotations

import click

from edge.cli.bench_memory import memory
from edge.cli.bench_quality import quality
from edge.cli.bench_serve import serve
from edge.cli.bench_speed import speed
from edge.cli.bench_startup import startup
from edge.cli.bench_tune import tune


@click.group()
def command() -> None:
    """Measure speed, memory and quality.

    Each verb prints a table and, as its last line, the same as JSON: `edge bench speed REF | tail -1 | jq`. What is
    printed can be kept, and a later run compared with it: --compare FILE.
    """


for verb in (speed, memory, quality, serve, startup, tune):
    command.add_command(verb)
