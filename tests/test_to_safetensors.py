"""From a GGUF file back to a checkpoint: bit for bit where nothing was lost."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny_checkpoints
from hostile import HOSTILE
from tiny import tiny_llama

from edge.convert import checkpoint
from edge.convert.families import rope
from edge.convert.families.from_header import decimal, llama3_rope
from edge.convert.safetensors import Writer
from edge.convert.to_gguf import convert
from edge.convert.to_safetensors import narrowed, to_safetensors
from edge.errors import BadGGUF, ConversionError, ModelNotFound, RequestError, StoreError

pytest.importorskip("tokenizers")
TRAINED = Path(__file__).parents[2] / "shared" / "checkpoints" / "llama2-arch-20m"
TEXTS = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
]
# llama.cpp patches the tokens of what is called phi3, and expects them to be there
NAMES = {case: case.replace("phi3", "third-phi") for case in tiny_checkpoints.CASES}


def source_of(case, folder, dtype):
    """A family's tiny checkpoint with all its weights in one dtype."""
    tiny_checkpoints.write(case, folder)
    with checkpoint.open(folder) as whole:
        tensors = {name: narrowed(whole.float32(name), dtype) for name in whole.tensors}
    (folder / "model.safetensors").unlink()
    listed = [(name, dtype, array.shape) for name, array in tensors.items()]
    with Writer(folder / "model.safetensors", listed) as writer:
        for name, array in tensors.items():
            writer.write(name, array)
    return folder


def gguf_of(source, folder, level, name="tiny"):
    (made,) = convert(source, [level], folder, name=name, prove=False)[:1]
    return made.path


def different(first, second):
    """Tensors that are not the same bits in the same dtype on both sides."""
    with checkpoint.open(first) as one, checkpoint.open(second) as other:
        names = {*one.tensors, *other.tensors}
        return {
            name
            for name in names
            if name not in one.tensors
            or name not in other.tensors
            or one.tensors[name].dtype != other.tensors[name].dtype
            or one.tensors[name].shape != other.tensors[name].shape
            or not np.array_equal(one.raw(name), other.raw(name))
        }


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_a_checkpoint_comes_back_bit_for_bit_norms_included(tmp_path, dtype):
    source = source_of("llama-biases-wide-heads", tmp_path / "source", dtype)
    file = gguf_of(source, tmp_path, dtype.lower())
    made = to_safetensors(file, tmp_path / "back", max_buffer=1000)
    assert made.dtype == dtype
    assert made.notes == ()
    assert list(made.files) == sorted(path.name for path in made.folder.iterdir()) == TEXTS
    assert made.bytes == sum(path.stat().st_size for path in made.folder.iterdir())
    assert different(source, made.folder) == set()
    again = gguf_of(made.folder, tmp_path / "again", dtype.lower())
    assert again.read_bytes() == file.read_bytes()


@pytest.mark.parametrize("case", tiny_checkpoints.GGUF)
def test_every_family_comes_back_in_f16(tmp_path, case):
    source = source_of(case, tmp_path / "source", "F16")
    made = to_safetensors(gguf_of(source, tmp_path, "f16", NAMES[case]), tmp_path / "back")
    # The rows of positions that RoBERTa never reaches are not in the file; tiny Gemma norms lose bits to their 1.
    lost = {name for name in different(source, made.folder) if "position" not in name}
    assert not lost or ("gemma" in case and all("norm" in name for name in lost))
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (source, made.folder))
    for key in ("hidden_size", "num_hidden_layers", "dim", "n_layers", "n_embd", "vocab_size", "id2label"):
        assert theirs.get(key) == ours.get(key)
    if "mistral" not in case:
        assert theirs["architectures"] == ours["architectures"]


def test_a_quantized_file_is_dequantized_and_says_so(tmp_path):
    source = source_of("llama", tmp_path / "source", "F32")
    file = gguf_of(source, tmp_path, "q4_0")
    made = to_safetensors(file, tmp_path / "f32", level="f32")
    assert made.notes == ("dequantized tensors: 15 Q4_0, 1 Q8_0; what quantizing lost stays lost",)
    reader = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    up = reader["blk.1.ffn_up.weight"]
    expected = gguf.dequantize(up.data, up.tensor_type)
    with checkpoint.open(made.folder) as back:
        assert np.array_equal(back.raw("model.layers.1.mlp.up_proj.weight"), expected)
    half = to_safetensors(file, tmp_path / "f16")
    assert half.dtype == "F16"
    with checkpoint.open(half.folder) as back:
        assert np.array_equal(back.raw("model.layers.1.mlp.up_proj.weight"), expected.astype(np.float16))
        # the norms of an F32 source are more than f16 holds
        assert back.tensors["model.norm.weight"].dtype == "F32"
    assert "5 tensors stay F32" in half.notes[1]


def test_a_level_is_rounded_to_the_nearest_and_never_to_infinity(tmp_path):
    source = source_of("llama", tmp_path / "source", "F32")
    file = gguf_of(source, tmp_path, "f32")
    made = to_safetensors(file, tmp_path / "bf16", level="bf16")
    with checkpoint.open(source) as one, checkpoint.open(made.folder) as other:
        name = "model.layers.0.self_attn.q_proj.weight"
        assert np.array_equal(
            other.raw(name), gguf.quantize(one.float32(name), gguf.GGMLQuantizationType.BF16).view(np.uint16)
        )
    with pytest.raises(RequestError, match="'q8_0' is no level of a checkpoint"):
        to_safetensors(file, tmp_path / "other", level="q8_0")
    with checkpoint.open(source) as whole:
        tensors = {name: whole.float32(name) for name in whole.tensors}
    tensors["lm_head.weight"][3, 4] = 70000
    (source / "model.safetensors").unlink()
    with Writer(
        source / "model.safetensors", [(name, "F32", x.shape) for name, x in tensors.items()]
    ) as writer:
        for name, array in tensors.items():
            writer.write(name, array)
    file = gguf_of(source, tmp_path / "large", "f32")
    with pytest.raises(ConversionError, match=r"lm_head\.weight has values beyond f16's 65504"):
        to_safetensors(file, tmp_path / "other", level="f16")
    assert {path.name for path in tmp_path.iterdir()} == {"source", "tiny-f32.gguf", "bf16", "large"}


def test_a_folder_that_is_there_is_left_alone(tmp_path):
    file, there = tiny_llama(tmp_path / "tiny.gguf"), tmp_path / "there"
    there.mkdir()
    with pytest.raises(StoreError, match="is there already"):
        to_safetensors(file, there)
    assert not list(there.iterdir())
    with pytest.raises(StoreError, match="below cannot be written: "):
        to_safetensors(file, file / "below")
    with pytest.raises(ModelNotFound):
        to_safetensors(tmp_path / "none.gguf", tmp_path / "new")
    made = to_safetensors(file, tmp_path / "new" / "deep")
    assert json.loads((made.folder / "generation_config.json").read_text())["eos_token_id"] == 2


def test_a_full_disk_leaves_nothing(tmp_path):
    file = tiny_llama(tmp_path / "tiny.gguf")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(StoreError, match="cannot be written: File too large"):
            to_safetensors(file, tmp_path / "new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(tmp_path, name):
    build, refusal = HOSTILE[name]
    file = tmp_path / "hostile.gguf"
    file.write_bytes(build())
    with pytest.raises(BadGGUF) as caught:
        to_safetensors(file, tmp_path / "new")
    assert refusal in caught.value.line
    assert [path.name for path in tmp_path.iterdir()] == ["hostile.gguf"]


def changed(path, **keys):
    """The tiny model with other metadata, and tensors renamed where a value is a text."""
    reader = gguf.GGUFReader(tiny_llama(path.with_name("whole.gguf")))
    renamed = {old: new for old, new in keys.items() if "weight" in old}
    architecture = keys.get("general.architecture", "llama")
    writer = gguf.GGUFWriter(path, architecture)
    for key, field in reader.fields.items():
        if key.startswith(("llama.", "tokenizer.")):
            value = keys.get(key, field.contents())
            writer.add_key_value(
                key.replace("llama.", f"{architecture}."), value, field.types[0], *field.types[1:2]
            )
    for key, value in keys.items():
        if key not in reader.fields and key not in renamed:
            add = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32}[type(value)]
            add(key, value)
    for tensor in reader.tensors:
        writer.add_tensor(renamed.get(tensor.name, tensor.name), tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"general.architecture": "lama"}, "lama is not a GGUF architecture that is known here"),
        ({"llama.expert_count": 8}, "llama.expert_count is 8"),
        ({"llama.rope.dimension_count": 8}, "llama.rope.dimension_count is 8"),
        ({"llama.rope.scaling.type": "yarn"}, "rope scaling 'yarn'"),
        (
            {"llama.feed_forward_length": 64},
            r"ffn_gate.weight is \(128, 64\) and the metadata makes it \(64, 64\)",
        ),
        ({"blk.0.ffn_up.weight": "blk.0.ffn_down.scale"}, "has no tensor blk.0.ffn_up.weight"),
        (
            {"output.weight": "outpt.weight"},
            "1 tensors that this family does not know, outpt.weight among them",
        ),
        (
            {"output_norm.weight": "rope_freqs.weight"},
            "rope_freqs.weight is not what Llama 3's formula gives",
        ),
    ],
)
def test_a_file_that_config_json_cannot_describe_is_refused(tmp_path, change, words):
    file = changed(tmp_path / "changed.gguf", **change)
    with pytest.raises(ConversionError, match=words):
        to_safetensors(file, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_llama_3_s_numbers_are_found_in_its_divisors():
    for factor, context, base in ((8.0, 8192, 500000.0), (32.0, 8192, 500000.0), (4.0, 100, 10000.0)):
        said = rope.Llama3Rope(factor, 1.0, 4.0, context)
        divisors = rope.Rope(base, llama3=said).divisors(64).astype(np.float32)
        assert llama3_rope(base, 64, divisors) == said
        divisors[20] *= 1.01
        with pytest.raises(ConversionError, match="formula"):
            llama3_rope(base, 64, divisors)
    assert decimal(float(np.float32(1e-5))) == 1e-5


@pytest.mark.skipif(not TRAINED.exists(), reason="the trained checkpoint lies beside the repository")
def test_a_trained_bf16_checkpoint_comes_back_bit_for_bit(tmp_path):
    made = to_safetensors(gguf_of(TRAINED, tmp_path, "bf16"), tmp_path / "back")
    assert (made.dtype, made.notes) == ("BF16", ())
    assert different(TRAINED, made.folder) == set()


PEAK = """
import sys
from pathlib import Path
from edge.convert.to_safetensors import to_safetensors
made = to_safetensors(Path(sys.argv[1]), Path(sys.argv[2]))
print(made.dtype, *made.notes)
# Linux: the peak of this very program, which ru_maxrss inherits from whoever started it
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.model
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
def test_the_default_model_becomes_a_checkpoint_in_bounded_memory_that_converts_again(
    default_model, tmp_path
):
    back = tmp_path / "back"
    done = subprocess.run(
        [sys.executable, "-c", PEAK, default_model, back], capture_output=True, text=True, check=True
    )
    said, peak = done.stdout.splitlines()
    assert said.startswith("F16 dequantized tensors: 210 Q4_1, 1 Q8_0")
    assert int(peak) < 200 << 10  # KiB
    assert (back / "model.safetensors").stat().st_size > 269_000_000
    again = to_safetensors(gguf_of(back, tmp_path, "f16"), tmp_path / "again")
    assert again.notes == ()
    for name in TEXTS:
        assert (again.folder / name).read_bytes() == (back / name).read_bytes(), name
