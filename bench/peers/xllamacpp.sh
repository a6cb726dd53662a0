#!/usr/bin/env bash
# Make an environment with xllamacpp, which brings a llama.cpp of its own, built to run on any CPU of its kind.
# Usage: bench/peers/xllamacpp.sh DIR, then EDGE_XLLAMACPP_PYTHON=DIR/bin/python
set -euo pipefail

target=${1:?usage: bench/peers/xllamacpp.sh DIR}
python=$(command -v "${PYTHON:-.venv/bin/python}") || {
    echo "no Python: ${PYTHON:-.venv/bin/python} is not here; run make chat first, or set PYTHON=…" >&2
    exit 1
}
"$python" -m venv "$target"
"$target/bin/pip" install --quiet xllamacpp
"$target/bin/python" -c 'import xllamacpp; print("xllamacpp", xllamacpp.__version__)'
