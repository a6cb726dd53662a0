#!/usr/bin/env bash
# Build llama.cpp's own programs from the source distribution of the installed llama-cpp-python, so that a
# comparison runs the very same kernels. Usage: bench/peers/llama.cpp.sh DIR [PROGRAM…]
set -euo pipefail

target=${1:?usage: bench/peers/llama.cpp.sh DIR [PROGRAM…]}
shift
programs=("$@")
[ $# -gt 0 ] || programs=(llama-bench llama-completion llama-server llama-perplexity llama-quantize llama-imatrix)
python=$(command -v "${PYTHON:-.venv/bin/python}") || {
    echo "no Python: ${PYTHON:-.venv/bin/python} is not here; run make chat first, or set PYTHON=…" >&2
    exit 1
}
case $python in /*) ;; *) python=$PWD/$python ;; esac

version=$("$python" -c 'from importlib.metadata import version; print(version("llama-cpp-python"))')
mkdir -p "$target"
cd "$target"
if [ ! -d "llama_cpp_python-$version" ]; then
    "$python" -m pip download --no-deps --no-binary llama-cpp-python "llama-cpp-python==$version"
    tar -xzf "llama_cpp_python-$version.tar.gz"
fi
cmake -S "llama_cpp_python-$version/vendor/llama.cpp" -B build -DCMAKE_BUILD_TYPE=Release \
    -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF
cmake --build build -j "$(getconf _NPROCESSORS_ONLN)" --target "${programs[@]}"
for program in "${programs[@]}"; do ln -sf "build/bin/$program" "$program"; done
