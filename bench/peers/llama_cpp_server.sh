#!/usr/bin/env bash
# Make an environment with llama_cpp.server, of the version of the installed llama-cpp-python, whose engine it then is
# too. Usage: bench/peers/llama_cpp_server.sh DIR, then EDGE_LLAMA_CPP_SERVER=DIR/bin/python
set -euo pipefail

target=${1:?usage: bench/peers/llama_cpp_server.sh DIR}
python=$(command -v "${PYTHON:-.venv/bin/python}") || {
    echo "no Python: ${PYTHON:-.venv/bin/python} is not here; run make chat first, or set PYTHON=…" >&2
    exit 1
}
version=$("$python" -c 'from importlib.metadata import version; print(version("llama-cpp-python"))')
"$python" -m venv "$target"
# pip keeps the wheel it once built, so this compiles nothing where the project was installed from source
"$target/bin/pip" install --quiet "llama-cpp-python[server]==$version"
"$target/bin/python" -c 'import llama_cpp.server.app'
