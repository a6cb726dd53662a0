"""llama.cpp's C API as llama-cpp-python binds it, without the rest of that package."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

from edge.errors import EngineError

# llama.cpp explains a refusal only in its log; its errors are kept for our messages.
_log: list[str] = []
_transcripts: list[list[str]] = []
_ERROR = 4  # ggml.h, enum ggml_log_level


@cache
def llama() -> Any:
    """The module `llama_cpp.llama_cpp` with its backend initialised.

    Raises EngineError where llama-cpp-python is missing or its library does not load.
    """
    try:
        module = _low_level()
    except (ImportError, OSError, RuntimeError, FileNotFoundError) as error:
        raise EngineError(
            f"llama-cpp-python does not load ({error})",
            hint="reinstall it: pip install --force-reinstall --no-cache-dir llama-cpp-python",
        ) from error
    module.llama_backend_init()
    return module


def why(default: str) -> str:
    """The first error llama.cpp logged since `listen` (the later ones are its callers'), or `default`."""
    return _log[0] if _log else default


def listen() -> None:
    """Take llama.cpp's log from here on, so that `why` speaks of the next calls only.

    The log has one listener in a process, and llama-cpp-python's own classes make themselves that.
    """
    _log.clear()
    llama().llama_log_set(_keep_log, ctypes.c_void_p(0))


@contextmanager
def transcript() -> Iterator[list[str]]:
    """All that llama.cpp logs meanwhile, piece by piece: some of its results stand nowhere else."""
    listen()
    pieces: list[str] = []
    _transcripts.append(pieces)
    try:
        yield pieces
    finally:
        _transcripts.remove(pieces)


@contextmanager
def interrupts_held() -> Iterator[list[int]]:
    """Hold Ctrl-C and SIGTERM back from native calls that log; what is yielded is no longer empty once one came.

    An exception cannot leave the log's callback: ctypes would print it and the interrupt be lost.
    """
    held: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ours = {number: handler for number, handler in before.items() if callable(handler)}
    if not ours or threading.current_thread() is not threading.main_thread():
        yield held  # only Python's own handlers, in the main thread, raise anything
        return
    for number in ours:
        signal.signal(number, lambda number, _: held.append(number))
    try:
        yield held
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)
        if held:
            signal.raise_signal(held[0])


def _low_level() -> ModuleType:
    """Import `llama_cpp.llama_cpp` alone.

    `import llama_cpp` also runs its chat formats, server types and disk cache: 0.14 s and 15 MiB (bench/LOG.md)
    that one answer would wait for. A bare parent package stands in during the import and is taken away after,
    so a later `import llama_cpp` by anyone works as usual and finds this very module.
    """
    name = "llama_cpp"
    if name in sys.modules:
        return importlib.import_module(f"{name}.{name}")
    spec = importlib.util.find_spec(name)
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("it is not installed")
    parent = ModuleType(name)
    parent.__path__ = list(spec.submodule_search_locations)
    sys.modules[name] = parent
    try:
        return importlib.import_module(f"{name}.{name}")
    finally:
        del sys.modules[name]


def _keep_error(level: int, text: bytes, _: int | None) -> None:
    for pieces in _transcripts:
        pieces.append(text.decode("utf-8", "replace"))
    if level == _ERROR:
        _log.append(
            text.decode("utf-8", "replace").replace("===", "").strip("= \n")
        )  # rulers in its messages


# Kept for the life of the process: llama.cpp holds the pointer.
_keep_log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(_keep_error)
