"""What the shell completes a model reference to, and the option by which one of its files is chosen."""

from __future__ import annotations

import click

from edge import store
from edge.errors import EdgeError

goal_option = click.option(
    "--goal",
    multiple=True,
    metavar="GOAL",
    help="speed, quality, balanced, memory=SIZE or ttft=SECONDS; may be repeated.  "
    "[balanced; with bounds alone quality]",
)


def complete_ref(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Kept and catalogue names that begin like `incomplete`. A damaged store completes to the catalogue."""
    try:
        kept = [model.name for model in store.models()]
    except EdgeError:
        kept = []
    return sorted(name for name in {*kept, *store.catalogue()} if name.startswith(incomplete))
