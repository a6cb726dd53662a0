"""The memory formulas against llama.cpp's own buffers and against the peak of a real process."""

import re
import subprocess
import sys

import pytest
from tiny import tiny_llama

from edge import gguf_header
from edge.bench.memory import memory
from edge.memory import kv_bytes, layer_cells, predict

BUFFERS = """
import ctypes, sys
from pathlib import Path
from llama_cpp import llama_cpp as lib

@lib.llama_log_callback
def say(level, text, _):
    sys.stdout.write(text.decode())

lib.llama_log_set(say, ctypes.c_void_p(0))
params = lib.llama_model_default_params()
params.n_gpu_layers = 0
model = lib.llama_model_load_from_file(sys.argv[1].encode(), params)
params = lib.llama_context_default_params()
params.n_ctx, params.n_batch, params.n_ubatch = int(sys.argv[2]), 512, 512
params.n_outputs_max, params.swa_full, params.kv_unified = 1, False, True
lib.llama_init_from_model(model, params)
"""


def llama_cpp_kv_bytes(path, context):
    """What llama.cpp says it allocates for keys and values."""
    log = subprocess.run(
        [sys.executable, "-c", BUFFERS, str(path), str(context)], check=True, capture_output=True, text=True
    ).stdout
    return sum(float(found) for found in re.findall(r"llama_kv_cache: size = +([\d.]+) MiB", log)) * 2**20


@pytest.mark.parametrize("context", [1, 256, 300, 2048])
@pytest.mark.parametrize("shape", [{}, {"heads": 8, "kv_heads": 1, "embd": 128, "layers": 3}])
def test_keys_and_values_are_what_llama_cpp_allocates(tmp_path, context, shape):
    path = tiny_llama(tmp_path / "tiny.gguf", ctx=4096, **shape)
    allocated = llama_cpp_kv_bytes(path, context)
    assert kv_bytes(gguf_header.read(path), context) == pytest.approx(
        allocated, abs=0.0051 * 2**20
    )  # it rounds


def test_rearranged_weights_are_counted_where_the_cpu_rearranges(tmp_path):
    header = gguf_header.read(tiny_llama(tmp_path / "tiny.gguf"))
    plain = predict(header, 256, isa=("AVX2",))
    assert plain.weights_bytes == header.file_bytes  # F32 stays as it lies


def windowed(header, **extra):
    from dataclasses import replace

    metadata = {key.replace("llama.", "gemma3."): value for key, value in header.metadata.items()}
    metadata["general.architecture"] = "gemma3"
    return replace(header, metadata={**metadata, "gemma3.attention.sliding_window": 512, **extra})


def test_a_sliding_window_bounds_the_cells_of_its_layers(tmp_path):
    header = gguf_header.read(tiny_llama(tmp_path / "tiny.gguf", layers=6, ctx=8192))
    assert layer_cells(header, 8192) == [8192] * 6
    assert layer_cells(windowed(header), 8192) == [1024] * 5 + [8192]
    assert layer_cells(windowed(header), 300) == [512] * 6
    pattern = {"gemma3.attention.sliding_window_pattern": (True, False) * 3}
    assert layer_cells(windowed(header, **pattern), 8192) == [1024, 8192] * 3


@pytest.mark.model
@pytest.mark.parametrize("context", [512, 2048])
def test_the_default_models_peak_is_within_15_percent_and_not_below(default_model, context):
    (cell,) = memory([str(default_model)], [context])
    assert -0.02 < cell.error < 0.15
