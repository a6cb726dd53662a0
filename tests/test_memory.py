"""The memory formulas against llama.cpp's own buffers and against the peak of a real process."""

import math
import re
import subprocess
import sys
from dataclasses import replace

import gguf
import pytest
from tiny import tiny_llama

from edge import gguf_header
from edge.bench.memory import memory
from edge.gguf_header import Tensor
from edge.machine import host
from edge.memory import Cache, kv_bytes, layer_cells, predict, state_elements, weights

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
params.n_seq_max = int(sys.argv[3])
lib.llama_init_from_model(model, params)
"""


def llama_cpp_log(path, context, sequences=1):
    command = [sys.executable, "-c", BUFFERS, str(path), str(context), str(sequences)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def llama_cpp_kv_bytes(path, context):
    """What llama.cpp says it allocates for keys and values."""
    log = llama_cpp_log(path, context)
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
    assert plain.weights_bytes == header.file_bytes - header.data_offset  # F32 stays as it lies


def quantized(header, *shapes):
    """The header with Q4_K tensors of these names and shapes instead of its own."""
    tensors = (Tensor(name, shape, "Q4_K", 0, math.prod(shape) // 256 * 144) for name, shape in shapes)
    return replace(header, tensors=tuple(tensors))


def test_what_is_multiplied_is_rearranged_and_what_is_only_looked_up_is_not(tmp_path):
    header = gguf_header.read(tiny_llama(tmp_path / "tiny.gguf"))
    embedding, output = ("token_embd.weight", (256, 1000)), ("output.weight", (256, 1000))
    experts, one = ("blk.0.ffn_up_exps.weight", (256, 512, 8)), 1000 * 144

    def copied(*shapes):
        return weights(quantized(header, *shapes), ("AVX2",))[1]

    assert copied(embedding, output) == one
    assert copied(embedding) == one  # the embedding is the output too: one copy to multiply with
    assert copied(embedding, output, experts) == one + 512 * 8 * 144


def test_a_tied_embedding_is_copied_by_llama_cpp_too(tmp_path):
    isa = host().cpu.isa
    if "AVX2" not in isa and "dotprod" not in isa:
        pytest.skip("this CPU's kernels rearrange nothing")
    path = tied_q4_0(tmp_path / "tied.gguf")
    log = llama_cpp_log(path, 256)
    copied = sum(float(found) for found in re.findall(r"CPU_REPACK model buffer size = +([\d.]+) MiB", log))
    header = gguf_header.read(path)
    assert weights(header, isa)[1] == pytest.approx(copied * 2**20, abs=0.0051 * 2**20)


def tied_q4_0(path):
    """A tiny llama whose only quantized matrix is an embedding that is the output too."""
    whole = gguf.GGUFReader(tiny_llama(path.with_suffix(".f32")))
    writer = gguf.GGUFWriter(path, "llama")
    for name, field in whole.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kind = field.types[0]
            writer.add_key_value(
                name, field.contents(), kind, field.types[-1] if len(field.types) > 1 else None
            )
    for tensor in whole.tensors:
        if tensor.name == "token_embd.weight":
            kind = gguf.GGMLQuantizationType.Q4_0
            writer.add_tensor(tensor.name, gguf.quants.quantize(tensor.data, kind), raw_dtype=kind)
        elif tensor.name != "output.weight":
            writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def windowed(header, **extra):
    metadata = {key.replace("llama.", "gemma3."): value for key, value in header.metadata.items()}
    metadata["general.architecture"] = "gemma3"
    return replace(header, metadata={**metadata, "gemma3.attention.sliding_window": 512, **extra})


def test_a_sliding_window_bounds_the_cells_of_its_layers(tmp_path):
    header = gguf_header.read(tiny_llama(tmp_path / "tiny.gguf", layers=6, ctx=8192))
    assert layer_cells(header, 8192) == [8192] * 6
    assert layer_cells(windowed(header), 8192) == [1024] * 5 + [8192]
    assert layer_cells(windowed(header), 300) == [512] * 6
    # llama-kv-cache-iswa.cpp: a window for each sequence of a unified cache
    assert layer_cells(windowed(header), 8192, Cache(5)) == [3072] * 5 + [8192]
    pattern = {"gemma3.attention.sliding_window_pattern": (True, False) * 3}
    assert layer_cells(windowed(header, **pattern), 8192) == [1024, 8192] * 3


@pytest.mark.model
@pytest.mark.parametrize("context", [512, 2048])
def test_the_default_models_peak_is_within_8_percent_and_not_below(default_model, context):
    (cell,) = memory([str(default_model)], [context])
    assert 0 <= cell.error < 0.08


def test_a_recurrent_layers_state_is_counted_for_every_sequence(tmp_path):
    header = gguf_header.read(tiny_llama(tmp_path / "tiny.gguf"))
    mamba = {"llama.attention.head_count": 0, "llama.attention.head_count_kv": 0}
    mamba |= {"llama.ssm.inner_size": 128, "llama.ssm.state_size": 16, "llama.ssm.conv_kernel": 4}
    recurrent = replace(header, metadata={**header.metadata, **mamba})
    a_layer = 4 * (128 * 16 + 3 * 128)
    assert kv_bytes(recurrent, 4096) == 2 * a_layer
    assert kv_bytes(recurrent, 256, Cache(3)) == 6 * a_layer


def test_layers_with_attention_and_a_state_have_both(tmp_path):
    """As in Falcon-H1, whose header has one number of heads for all layers."""
    header = gguf_header.read(tiny_llama(tmp_path / "tiny.gguf", layers=2))
    ssm = {"llama.ssm.inner_size": 128, "llama.ssm.state_size": 16, "llama.ssm.conv_kernel": 4}
    both = replace(header, metadata={**header.metadata, **ssm})
    states = 2 * state_elements(both) * 4
    assert states > 0
    assert kv_bytes(both, 256, Cache(3)) == kv_bytes(header, 256, Cache(3)) + 3 * states


def test_where_attention_is_only_in_some_layers_the_others_have_the_state(tmp_path):
    """As in Qwen3-Next, whose header says of how many layers one has attention."""
    header = gguf_header.read(tiny_llama(tmp_path / "tiny.gguf", layers=4))
    hybrid = {"llama.ssm.inner_size": 128, "llama.ssm.state_size": 16, "llama.ssm.conv_kernel": 4}
    found = replace(header, metadata={**header.metadata, **hybrid, "llama.full_attention_interval": 4})
    assert kv_bytes(found, 256) == kv_bytes(header, 256) // 4 + 3 * state_elements(found) * 4
