"""Bars for work that counts its steps."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edge.cli.output import is_terminal

if TYPE_CHECKING:
    from rich.progress import TaskID

# what is done, how much of it, of how much
Steps = Callable[[str, int, int], None]


@contextmanager
def bars() -> Iterator[Steps]:
    """A report that draws a bar on stderr for everything that is done, in a terminal; nothing elsewhere."""
    if not is_terminal(sys.stderr):
        yield lambda doing, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as drawn:
        tasks = dict[str, "TaskID"]()

        def report(doing: str, done: int, total: int) -> None:
            if doing not in tasks:
                tasks[doing] = drawn.add_task(doing, total=total)
            drawn.update(tasks[doing], completed=done, total=total)

        yield report
