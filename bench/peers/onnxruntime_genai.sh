#!/usr/bin/env bash
# Make an environment with onnxruntime-genai, and of a checkpoint the folder that it reads.
# Usage: bench/peers/onnxruntime_genai.sh DIR [CHECKPOINT FOLDER [int4|fp32]], then EDGE_GENAI_PYTHON=DIR/bin/python and
# edge bench speed MODEL --vs onnxruntime-genai=FOLDER. Only the builder of folders needs torch (see torch.sh for
# PIP_EXTRA_INDEX_URL), so it is installed with the first of them.
set -euo pipefail

target=${1:?usage: bench/peers/onnxruntime_genai.sh DIR [CHECKPOINT FOLDER [int4|fp32]]}
if [ ! -x "$target/bin/python" ]; then
    python=$(command -v "${PYTHON:-.venv/bin/python}") || {
        echo "no Python: ${PYTHON:-.venv/bin/python} is not here; run make chat first, or set PYTHON=…" >&2
        exit 1
    }
    "$python" -m venv "$target"
fi
"$target/bin/pip" install --quiet onnxruntime-genai
if [ $# -gt 1 ]; then
    folder=${3:?usage: bench/peers/onnxruntime_genai.sh DIR CHECKPOINT FOLDER [int4|fp32]}
    "$target/bin/pip" install --quiet "torch==2.13.0" "transformers>=5" onnx onnx_ir
    HF_HUB_OFFLINE=1 "$target/bin/python" -m onnxruntime_genai.models.builder \
        -i "$2" -o "$folder" -p "${4:-int4}" -e cpu -c "$folder.cache"
    rm -rf "$folder.cache"
fi
"$target/bin/python" -c 'import onnxruntime_genai; print("onnxruntime-genai", onnxruntime_genai.__version__)'
