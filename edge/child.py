"""Commands that run a module of ours in a process of its own."""

from __future__ import annotations

import sys

# As `python -m`, but without the current folder on the path: a checkout's edge/ would hide the installed package.
RUN = (
    "import sys; sys.path[:] = filter(None, sys.path); import runpy; "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def python_m(module: str, *words: str) -> list[str]:
    """The command that runs `module` with these words as its arguments."""
    return [sys.executable, "-c", RUN, module, *words]
