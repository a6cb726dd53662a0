#!/usr/bin/env bash
# Make an environment with torch and transformers. Usage: bench/peers/torch.sh DIR [PIP_OPTION…], then
# EDGE_TORCH_PYTHON=DIR/bin/python. On Linux the package index's own torch brings CUDA along, some gigabytes of it; where
# PyTorch's index of CPU builds can be reached, name it behind DIR: --extra-index-url URL.
set -euo pipefail

target=${1:?usage: bench/peers/torch.sh DIR [PIP_OPTION…]}
shift
python=$(command -v "${PYTHON:-.venv/bin/python}") || {
    echo "no Python: ${PYTHON:-.venv/bin/python} is not here; run make chat first, or set PYTHON=…" >&2
    exit 1
}
"$python" -m venv "$target"
"$target/bin/pip" install --quiet "$@" "torch==2.13.0" "transformers>=5" safetensors
"$target/bin/python" -c 'import torch, transformers; print("torch", torch.__version__, "transformers", transformers.__version__)'
