"""Where everything is kept: models, conversations, the history of the prompt, and what may be deleted any time."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """`$EDGE_HOME`, else the user's data folder for edge."""
    if folder := os.environ.get("EDGE_HOME"):
        return Path(os.path.expanduser(folder)).absolute()  # noqa: PTH111 - Path's raises for an unknown user
    from platformdirs import user_data_path

    return user_data_path("edge", appauthor=False)


def picks_file() -> Path:
    """The JSON file of what was measured to pick a backend; it may be deleted at any time."""
    return home() / "picks.json"


def rates_file() -> Path:
    """The JSON file of what was measured of this host; it may be deleted at any time."""
    return home() / "rates.json"


def tuned_file() -> Path:
    """The JSON file of what `edge bench tune` found; it may be deleted at any time."""
    return home() / "tuned.json"


def evidence_file() -> Path:
    """The JSON file of what was measured of files' quality; it may be deleted at any time."""
    return home() / "evidence.json"


def sessions_file() -> Path:
    """The SQLite file of saved conversations."""
    return home() / "sessions.db"


def states_folder() -> Path:
    """The folder of kept prefixes, `$EDGE_HOME/cache/states` or in the user's cache; it may be deleted at any time."""
    if os.environ.get("EDGE_HOME"):
        return home() / "cache" / "states"
    from platformdirs import user_cache_path

    return user_cache_path("edge", appauthor=False) / "states"
