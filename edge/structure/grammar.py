"""A grammar (GBNF) that somebody wrote."""

from __future__ import annotations

from pathlib import Path

from edge.engine.gbnf import LONGEST, check_grammar
from edge.structure.files import read_text


def read_grammar(path: Path) -> str:
    """The text of a GBNF file with a rule `root`.

    Raises RequestError for a file that cannot be read, and for what does not parse (the line is named), can never
    end, begins with itself or is more than llama.cpp takes.
    """
    text = read_text(path, "grammar", LONGEST)
    check_grammar(text)
    return text
