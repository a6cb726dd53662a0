"""Hugging Face checkpoints: weights exact and in bounded memory, whatever contradicts itself refused."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import time
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile_checkpoints import FOLDERS, SHARDS, safetensors, sharded, single
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge import store
from edge.convert import checkpoint
from edge.convert.checkpoint import eight_bits
from edge.convert.safetensors import DTYPES, Writer
from edge.errors import EdgeError, ModelNotFound, StoreError, UnsafeFile
from edge.store.checkpoints import INDEX, TEXT_FILES

SHARED = Path(__file__).parents[2] / "shared" / "checkpoints"
few = settings(max_examples=60, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])


def save(folder: Path, config: dict[str, Any] | None = None, **tensors: tuple[str, Any]) -> Path:
    """A checkpoint with these tensors: (dtype, array of that dtype's elements)."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "llama"}))
    arrays = {name: np.asarray(array, DTYPES[dtype]) for name, (dtype, array) in tensors.items()}
    described = [(name, tensors[name][0], array.shape) for name, array in arrays.items()]
    with Writer(folder / "model.safetensors", described) as writer:
        for name, array in arrays.items():
            writer.write(name, array)
    return folder


def upper_half(values: Any) -> Any:
    """float32 cut to BF16."""
    return (np.asarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)


# Folders that are not what they say.


@pytest.mark.parametrize("name", FOLDERS)
def test_hostile_folder_is_refused(name: str, tmp_path: Path) -> None:
    builder, refusal = FOLDERS[name]
    folder = tmp_path / "x"
    folder.mkdir()
    builder(folder)
    began = time.process_time()
    with pytest.raises((UnsafeFile, ModelNotFound)) as caught:
        checkpoint.open(folder)
    assert time.process_time() - began < 3
    assert refusal in str(caught.value)
    assert caught.value.hint
    assert caught.value.line.isprintable()
    assert len(caught.value.line.replace(str(folder), "")) < 300


def test_every_hostile_folder_has_a_reason() -> None:
    assert len(FOLDERS) > 20
    assert all(builder.__doc__ for builder, _ in FOLDERS.values())


def test_a_refusal_closes_every_file(tmp_path: Path) -> None:
    sharded(tmp_path, {"a": SHARDS[0], "b": SHARDS[1]}, first=["a"], second=["a", "b"])
    before = len(list(Path("/dev/fd").iterdir()))
    with pytest.raises(UnsafeFile):
        checkpoint.open(tmp_path)
    assert len(list(Path("/dev/fd").iterdir())) == before


def test_paths_that_are_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="does not exist"):
        checkpoint.open(tmp_path / "absent")
    single(tmp_path)
    with pytest.raises(StoreError, match="is a file"):
        checkpoint.open(tmp_path / "model.safetensors")
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(UnsafeFile, match="never opened"):
        checkpoint.open(tmp_path / "model.bin")
    (tmp_path / "config.json").unlink()
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(UnsafeFile, match="no regular file"):
        checkpoint.open(tmp_path)


# What a good one says.


def test_golden(tmp_path: Path) -> None:
    places = {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[1]}
    sharded(tmp_path, places, first=["a"], second=["c", "b"])
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text("{}")
    (tmp_path / "modeling_x.py").write_text("raise SystemExit")
    with checkpoint.open(str(tmp_path)) as opened:
        assert (opened.path, opened.config, opened.notes) == (tmp_path, {}, ())
        assert {name: tensor.file for name, tensor in opened.tensors.items()} == places
        tensor = opened.tensors["b"]
        assert (tensor.dtype, tensor.shape, tensor.bytes) == ("F32", (2, 3), 24)
        assert list(opened.text_files) == ["vocab.txt", "1_Pooling/config.json"]
        names = ["config.json", INDEX, *SHARDS, "vocab.txt", "1_Pooling/config.json"]
        assert opened.sha256() == {
            name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in names
        }
        with pytest.raises(UnsafeFile, match="has no tensor d"):
            opened.float32("d")
    with pytest.raises(ValueError, match="closed"):
        opened.float32("a")


def test_code_of_the_checkpoint_is_noted_and_never_run(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit")
    save(tmp_path, {"auto_map": {"AutoConfig": "evil.Config"}})
    with checkpoint.open(tmp_path) as opened:
        (note,) = opened.notes
    assert "auto_map" in note
    assert "never run" in note


def test_one_file_goes_before_an_index(tmp_path: Path) -> None:
    sharded(tmp_path, {"b": SHARDS[0]}, first=["b"])
    save(tmp_path, a=("F32", [1.0]))
    with checkpoint.open(tmp_path) as opened:
        assert list(opened.tensors) == ["a"]
        assert opened.notes == ("model.safetensors is used, model.safetensors.index.json beside it is not",)


def hub_cache(root: Path) -> Path:
    """A snapshot as huggingface_hub lays it out: relative links into ../../blobs."""
    repo = root / "models--someone--model"
    snapshot = repo / "snapshots" / "0123abcd"
    (repo / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    save(root / "plain", a=("F32", [1.0, 2.0]))
    (root / "plain" / "tokenizer.json").write_text("{}")
    for number, name in enumerate(["config.json", "model.safetensors", "tokenizer.json"]):
        (root / "plain" / name).rename(repo / "blobs" / f"{number:064}")
        (snapshot / name).symlink_to(f"../../blobs/{number:064}")
    return snapshot


def test_links_of_the_hugging_face_cache_work(tmp_path: Path) -> None:
    snapshot = hub_cache(tmp_path)
    (tmp_path / "link").symlink_to(snapshot)
    for folder in (snapshot, tmp_path / "link"):
        with checkpoint.open(folder) as opened:
            assert opened.float32("a").tolist() == [1, 2]
            assert opened.text_files["tokenizer.json"].read_text() == "{}"
            assert sorted(opened.sha256()) == ["config.json", "model.safetensors", "tokenizer.json"]
    (tmp_path / "secret").write_text("{}")
    (snapshot / "vocab.txt").symlink_to("../../../secret")
    with pytest.raises(UnsafeFile, match=r"vocab.txt is a link that leads out"):
        checkpoint.open(snapshot)


def test_links_of_the_users_own_work(tmp_path: Path) -> None:
    """Weights may lie on another disk; a link within the folder is no way out."""
    folder = save(tmp_path / "x", a=("F32", [1.0]))
    (folder / "model.safetensors").rename(tmp_path / "elsewhere")
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    (folder / "tokenizer_config.json").symlink_to("config.json")
    with checkpoint.open(folder) as opened:
        assert opened.float32("a").tolist() == [1]
        assert list(opened.text_files) == ["tokenizer_config.json"]


def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    folder = save(tmp_path / "x", a=("F32", [1.0]))
    (folder / "vocab.txt").symlink_to("gone")
    with checkpoint.open(folder) as opened:
        assert not opened.text_files
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("model.safetensors")
    with pytest.raises(StoreError, match="cannot be read"):
        checkpoint.open(folder)


# Values.


def test_values_of_every_dtype(tmp_path: Path) -> None:
    floats = [0.0, -0.0, 1.0, -1.5, 2.0**-14, 0.333251953125]
    save(
        tmp_path,
        f64=("F64", [[1e-40, 0.1]]),
        f32=("F32", [1e-45, 3.4e38]),
        f16=("F16", [*floats, 6e-8, 65504.0]),
        bf16=("BF16", upper_half([*floats, 1e-40, 3e38])),
        e4m3=("F8_E4M3", [0x00, 0x80, 0x01, 0x38, 0x7E, 0xFE]),
        e5m2=("F8_E5M2", [0x00, 0x80, 0x01, 0x3C, 0x7B, 0xFB]),
        scalar=("F16", 2.5),
        none=("BF16", np.zeros((0, 4))),
    )
    with checkpoint.open(tmp_path) as opened:
        read = {name: opened.float32(name) for name in opened.tensors}
        assert all(array.dtype == np.float32 for array in read.values())
        assert read["f64"].tolist() == [[np.float32(1e-40), np.float32(0.1)]]
        assert read["f32"].tolist() == [np.float32(1e-45), np.float32(3.4e38)]
        assert read["f16"].tolist() == [*np.array([*floats, 6e-8], "f2").tolist(), 65504]
        assert np.signbit(read["f16"][1])
        assert (upper_half(read["bf16"]) == opened.raw("bf16")).all()
        assert (read["bf16"].view(np.uint32) & 0xFFFF == 0).all()
        assert read["e4m3"].tolist() == [0, 0, 2**-9, 1, 448, -448]
        assert read["e5m2"].tolist() == [0, 0, 2**-16, 1, 57344, -57344]
        assert read["scalar"].shape == ()
        assert read["scalar"] == 2.5
        assert read["none"].shape == (0, 4)
        assert list(opened.chunks("none", 100)) == []
        assert opened.raw("bf16").dtype == np.uint16
        assert opened.raw("f64").dtype == np.float64


def test_e5m2_is_the_upper_half_of_f16() -> None:
    codes = np.arange(256, dtype=np.uint16)
    finite = codes & 0x7C != 0x7C
    ours, theirs = eight_bits(2)[finite], (codes[finite] << 8).view(np.float16).astype(np.float32)
    assert (ours.view(np.uint32) == theirs.view(np.uint32)).all()


def test_integers_are_no_weights_and_can_be_read(tmp_path: Path) -> None:
    save(tmp_path, ids=("I64", [[0, 2**40]]), mask=("BOOL", [1, 0]))
    with checkpoint.open(tmp_path) as opened:
        assert opened.raw("ids").tolist() == [[0, 2**40]]
        assert opened.raw("mask").tolist() == [1, 0]
        opened.check_finite("ids")
        with pytest.raises(UnsafeFile, match="tensor ids is I64, not floats"):
            opened.float32("ids")


@pytest.mark.parametrize(
    ("dtype", "wrong"),
    [
        ("F64", [np.nan, -np.inf, 1e300]),
        ("F32", [np.nan, np.inf, -np.inf]),
        ("F16", [np.nan, np.inf, -np.inf]),
        ("BF16", [0x7FC0, 0x7F80, 0xFF81]),
        ("F8_E4M3", [0x7F, 0xFF, 0x7F]),
        ("F8_E5M2", [0x7C, 0xFD, 0x7F]),
    ],
)
def test_values_that_are_none_are_named(dtype: str, wrong: list[float], tmp_path: Path) -> None:
    array = np.ones((700, 500), DTYPES[dtype])  # more than a block
    array[3, 7], array[599, 1], array[699, 499] = wrong
    save(tmp_path, w=(dtype, array))
    with checkpoint.open(tmp_path) as opened:
        for read in (
            lambda: opened.float32("w"),
            lambda: opened.raw("w"),
            lambda: list(opened.chunks("w", 4000)),
            lambda: list(opened.chunks("w", 4000, raw=True)),
            lambda: opened.check_finite("w"),
        ):
            with pytest.raises(UnsafeFile, match=r"tensor w has 3 values .* the first at \[3, 7\]"):
                read()


@few
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    depth=st.integers(0, 3),
    limit=st.integers(0, 400),
    raw=st.booleans(),
)
def test_chunks_are_whole_rows(
    rows: int, columns: int, depth: int, limit: int, raw: bool, tmp_path: Path
) -> None:
    shape = (*[2] * max(0, depth - 1), *[rows] * min(1, depth), columns)
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    save(tmp_path, w=("BF16", upper_half(values)))
    with checkpoint.open(tmp_path) as opened:
        whole = opened.raw("w") if raw else opened.float32("w")
        pieces = list(opened.chunks("w", limit, raw=raw))
    assert all(piece.shape[1] == columns and len(piece) for piece in pieces)
    assert all(len(piece) == 1 or piece.nbytes <= limit for piece in pieces)
    assert (np.concatenate(pieces).reshape(shape) == whole).all()
    assert pieces[0].dtype == whole.dtype


def test_a_file_cut_while_it_is_open(tmp_path: Path) -> None:
    save(tmp_path, w=("F32", np.zeros(1000)))
    with checkpoint.open(tmp_path) as opened:
        os.truncate(tmp_path / "model.safetensors", 2000)
        with pytest.raises(UnsafeFile, match="ended at byte 2000"):
            opened.float32("w")


# Memory.


def peak_of(work: Any) -> int:
    tracemalloc.start()
    work()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_reading_a_tensor_costs_its_size(dtype: str, tmp_path: Path) -> None:
    size = 4 << 20  # elements
    save(tmp_path, w=(dtype, np.ones((2048, 2048))))
    with checkpoint.open(tmp_path) as opened:
        assert peak_of(lambda: opened.float32("w")) < 4 * size + (2 << 20)
        assert peak_of(lambda: opened.raw("w")) < DTYPES[dtype].itemsize * size + (2 << 20)
        assert peak_of(lambda: [None for _ in opened.chunks("w", 1 << 20)]) < 5 << 20


def llama_7b(folder: Path) -> None:
    """Names and shapes of Llama 2 7B in sparse files: 13 GB that take no room."""
    names = [("model.embed_tokens.weight", (32000, 4096)), ("lm_head.weight", (32000, 4096))]
    for layer in range(32):
        names += [(f"model.layers.{layer}.self_attn.{name}_proj.weight", (4096, 4096)) for name in "qkvo"]
        names += [(f"model.layers.{layer}.mlp.{name}_proj.weight", (11008, 4096)) for name in ("gate", "up")]
        names += [(f"model.layers.{layer}.mlp.down_proj.weight", (4096, 11008))]
        names += [
            (f"model.layers.{layer}.{name}_layernorm.weight", (4096,)) for name in ("input", "post_attention")
        ]
    places = {}
    for number, part in enumerate((names[:140], names[140:]), 1):
        shard, end, header = f"model-{number:05}-of-00002.safetensors", 0, {}
        for name, shape in part:
            size = int(np.prod(shape)) * 2
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
            end, places[name] = end + size, shard
        text = json.dumps(header).encode()
        (folder / shard).write_bytes(struct.pack("<Q", len(text)) + text)
        os.truncate(folder / shard, 8 + len(text) + end)
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    (folder / "config.json").write_text("{}")


def test_a_checkpoint_of_13_gb_is_opened_in_5_mb(tmp_path: Path) -> None:
    llama_7b(tmp_path)
    began = time.process_time()
    assert peak_of(lambda: checkpoint.open(tmp_path).__exit__()) < 5_000_000
    assert time.process_time() - began < 2
    with checkpoint.open(tmp_path) as opened:
        assert sum(tensor.bytes for tensor in opened.tensors.values()) > 13e9
        first = next(opened.chunks("lm_head.weight", 8 << 20))
        assert first.shape == (512, 4096)


# Damage: refused or harmless, never anything else.


@few
@given(data=st.data(), name=st.sampled_from([SHARDS[0], INDEX, "config.json"]))
def test_flipped_bytes(data: st.DataObject, name: str, tmp_path: Path) -> None:
    sharded(tmp_path, {"a": SHARDS[0], "b": SHARDS[1]}, first=["a"], second=["b"])
    (tmp_path / "config.json").write_text('{"hidden_size": 4, "rope_scaling": {"factor": 8.0}}')
    content = bytearray((tmp_path / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (tmp_path / name).write_bytes(content)
    began = time.process_time()
    with suppress(UnsafeFile), checkpoint.open(tmp_path) as opened:
        for tensor in opened.tensors:
            opened.float32(tensor)
    assert time.process_time() - began < 1


def test_a_good_file_under_a_wrong_shape_is_refused(tmp_path: Path) -> None:
    single(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(
        safetensors({"a": {"dtype": "F32", "shape": [7], "data_offsets": [0, 24]}})
    )
    with pytest.raises(
        UnsafeFile, match=r"model.safetensors: tensor a takes 28 bytes as F32 \[7\] and has 24"
    ):
        checkpoint.open(tmp_path)


# Real ones.


@pytest.mark.parametrize(
    "name", ["finance-sentiment-minilm", "llama2-arch-20m", "ner-minilm", "sst2-bert-tiny"]
)
def test_real_checkpoint(name: str) -> None:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"the shared checkpoint {name} is not here")
    with checkpoint.open(folder) as opened:
        assert opened.config["architectures"]
        assert opened.notes == ()
        assert set(opened.text_files) == {file for file in TEXT_FILES if (folder / file).exists()}
        shards = {tensor.file for tensor in opened.tensors.values()}
        assert shards == {path.name for path in folder.glob("*.safetensors")}
        assert all(len(digest) == 64 for digest in opened.sha256().values())
        for weight, tensor in opened.tensors.items():
            if tensor.dtype.startswith("I"):
                continue
            values, parts = opened.float32(weight), list(opened.chunks(weight, 1 << 20))
            assert values.shape == tensor.shape
            assert (np.concatenate(parts).ravel() == values.ravel()).all()
            again = np.memmap(folder / tensor.file, DTYPES[tensor.dtype], "r", tensor.offset, tensor.shape)
            assert (opened.raw(weight) == again).all()


def test_all_minilm(monkeypatch) -> None:
    monkeypatch.setenv("EDGE_HOME", str(Path(__file__).parents[1] / ".venv" / "edge-home"))
    try:
        model = store.resolve("all-minilm-l6-v2")
    except EdgeError as error:
        pytest.skip(f"all-MiniLM is not pulled: {error.line}")
    with checkpoint.open(model.path) as opened:
        assert opened.config["model_type"] == "bert"
        assert opened.float32("embeddings.word_embeddings.weight").shape == (30522, 384)
        assert "1_Pooling/config.json" in opened.text_files
