"""What `edge show` says of a model that `edge train` made: its labels, its encoder, how it was trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

HEAD = "head.json"  # `edge.tasks.head` has it, and NumPy with it


def head_facts(folder: Path) -> dict[str, Any]:
    """What head.json says; the encoder is not opened. Raises UnsafeFile where the head does not hold together."""
    from edge.tasks import head

    found = head.read(folder)
    return {
        "format": "trained head and its encoder",
        "task": "classification",
        "labels": list(found.labels),
        "embedding": found.weight.shape[1],
        "encoder": found.facts.get("encoder"),
        "training": found.facts.get("training"),
    }


def head_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The lines for people; what a file does not say, or says in another form, is left out."""
    encoder, training = (
        found if isinstance(found := facts.get(name), dict) else {} for name in ("encoder", "training")
    )
    figures = training.get("held_out")
    held_out = figures if isinstance(figures, dict) else {}
    rows = (texts(encoder, "{}", "name"), texts(encoder, "{}", "level"), texts(encoder, "{}", "backend"))
    fitted = (
        texts(training, "{}", "date"),
        texts(training, "{} rows", "rows"),
        texts(training, "{} folds", "folds"),
    )
    scores = (
        texts(held_out, "log loss {:.4g} nats", "nll"),
        texts(held_out, "calibration error {:.4g}", "ece"),
    )
    named = {"encoder": rows, "trained": fitted, "held out": scores}
    return [(name, ", ".join(filter(None, parts))) for name, parts in named.items()]


def texts(values: Mapping[str, Any], form: str, key: str) -> str:
    """A value as it is shown; empty where it is not there or does not fit."""
    try:
        return form.format(values[key]) if isinstance(values[key], str | int | float) else ""
    except (KeyError, ValueError):
        return ""
