"""Which engines are installed and what they were built with, found without loading any of them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Installed:
    """Versions ("" when absent) and the ggml backends that llama.cpp was built with: "cpu", "cuda"."""

    llama_cpp: str
    libraries: frozenset[str]
    onnxruntime: str


def installed() -> Installed:
    """What is installed, without loading any of it."""
    package = _package("llama_cpp")
    # llama-cpp-python's own variable for libraries built elsewhere
    folder = os.environ.get("LLAMA_CPP_LIB_PATH") or (package and package / "lib")
    try:
        names = os.listdir(folder) if package and folder else []  # noqa: PTH208 - names are wanted
    except OSError:
        names = []
    return Installed(_version_of(package), libraries(names), _version_of(_package("onnxruntime")))


def _package(name: str) -> Path | None:
    from importlib.util import find_spec

    spec = find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None


def _version_of(package: Path | None) -> str:
    # Both write it into __init__.py; importlib.metadata would take 60 ms, most of it to load `email`.
    if package is None:
        return ""
    try:
        text = (package / "__init__.py").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"""^__version__ = ["'](.+?)["']""", text, re.M)
    return found[1] if found else "of unknown version"


def libraries(names: list[str]) -> frozenset[str]:
    """The ggml backends among file names: libggml-cuda.so, libggml-metal.dylib, libggml-cpu-haswell.so."""
    found = (re.match(r"(?:lib)?ggml-([a-z]+)[^/]*\.(?:so|dylib|dll)\b", name) for name in names)
    return frozenset(match[1] for match in found if match)
