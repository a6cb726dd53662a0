"""llama.cpp's C API as llama-cpp-python binds it, without the rest of that package."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import sys
from collections import deque
from functools import cache
from types import ModuleType
from typing import Any

from edge.errors import EngineError

# llama.cpp explains a refusal only in its log; the last warnings and errors are kept for our messages.
_log: deque[str] = deque(maxlen=32)
_WARN, _ERROR = 3, 4  # ggml.h, enum ggml_log_level


@cache
def llama() -> Any:
    """The module `llama_cpp.llama_cpp` with its backend initialised and its log captured.

    Raises EngineError where llama-cpp-python is missing or its library does not load.
    """
    try:
        module = _low_level()
    except (ImportError, OSError, RuntimeError, FileNotFoundError) as error:
        raise EngineError(
            f"llama-cpp-python does not load ({error})",
            hint="reinstall it: pip install --force-reinstall --no-cache-dir llama-cpp-python",
        ) from error
    module.llama_log_set(_keep_log, ctypes.c_void_p(0))
    module.llama_backend_init()
    return module


def why(default: str) -> str:
    """The last thing llama.cpp logged as an error, or `default`."""
    return _log[-1] if _log else default


def forget_log() -> None:
    """Start afresh, so that `why` speaks of the next call only."""
    _log.clear()


def _low_level() -> ModuleType:
    """Import `llama_cpp.llama_cpp` alone.

    `import llama_cpp` also runs its chat formats, server types and disk cache: a third of a second and 25 MB
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


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def _keep_log(level: int, text: bytes, _: Any) -> None:
    if level in (_WARN, _ERROR):
        line = text.decode("utf-8", "replace").strip()
        if level == _ERROR and line:
            _log.append(line)
