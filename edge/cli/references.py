"""What the shell completes a model reference to."""

from __future__ import annotations

import click

from edge import store
from edge.errors import EdgeError


def complete_ref(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Kept and catalogue names that begin like `incomplete`. A damaged store completes to the catalogue."""
    try:
        kept = [model.name for model in store.models()]
    except EdgeError:
        kept = []
    return sorted(name for name in {*kept, *store.catalogue()} if name.startswith(incomplete))
