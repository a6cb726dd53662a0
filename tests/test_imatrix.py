"""Importance matrices: llama.cpp's file forms, and collecting one while a model reads."""

import ctypes
import signal
import struct
from functools import partialmethod
from pathlib import Path

import gguf
import hostile
import numpy as np
import pytest
import tiny_checkpoints
from family_files import f32_file, random_weights
from test_family_bert import BERT
from test_family_llama import BASE
from tiny import tiny_llama
from tiny_mixture import mixture

from edge.convert import collect, ggml_tensors, imatrix, numpy_ops
from edge.convert.families import family_of, llama
from edge.convert.imatrix import Importance
from edge.convert.quantize import Settings
from edge.convert.to_gguf import calibrate, convert
from edge.engine.binding import llama as binding
from edge.errors import BadGGUF, ConversionError, EngineError, ModelNotFound, RequestError, UnsafeFile

TEXT = "the ferry left at seven, later than the timetable said, and nobody on the quay minded. " * 3
DENSE, EXPERTS = "blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight"


def matrix():
    """A dense weight of three columns and two experts of two, the second never used."""
    return Importance(
        sums={
            DENSE: np.array([[2, 4, 8]], np.float32),
            EXPERTS: np.array([[3, 6], [0, 0]], np.float32),
        },
        counts={DENSE: np.array([4]), EXPERTS: np.array([3, 0])},
        datasets=("a.txt",),
        chunks=2,
        chunk_size=512,
    )


def test_what_is_written_is_read_and_has_the_bytes_of_llama_imatrix(tmp_path):
    path = imatrix.write(matrix(), tmp_path / "m.gguf")

    def info(name, shape, offset):
        return hostile.tensor(name, shape, 0, offset)

    def block(*values):
        return struct.pack(f"<{len(values)}f", *values).ljust(32, b"\0")

    golden = (
        b"GGUF" + struct.pack("<IQQ", 3, 4, 4) + KEYS_START + hostile.u32("imatrix.chunk_count", 2)
        + hostile.u32("imatrix.chunk_size", 512)
        + info(f"{DENSE}.in_sum2", (3,), 0) + info(f"{DENSE}.counts", (1,), 32)
        + info(f"{EXPERTS}.in_sum2", (2, 2), 64) + info(f"{EXPERTS}.counts", (1, 2), 96)
    )  # fmt: skip
    golden += bytes(-len(golden) % 32) + block(2, 4, 8) + block(4) + block(3, 6, 0, 0) + block(3, 0)
    assert path.read_bytes() == golden

    again = imatrix.read(path)
    assert (again.datasets, again.chunks, again.chunk_size) == (("a.txt",), 2, 512)
    assert np.array_equal(again.sums[EXPERTS], matrix().sums[EXPERTS])
    assert imatrix.write(again, tmp_path / "again.gguf").read_bytes() == golden
    assert {name.name for name in tmp_path.iterdir()} == {"m.gguf", "again.gguf"}


KEYS_START = hostile.text("general.type", "imatrix") + hostile.array(
    "imatrix.datasets", hostile.STRING, 1, hostile.string("a.txt")
)


def test_means_are_those_of_llama_quantize():
    means = matrix().means()
    assert means[DENSE].tolist() == [0.5, 1, 2]
    assert means[EXPERTS].tolist() == [1, 2, 1, 1]
    assert {values.dtype for values in means.values()} == {np.dtype(np.float32)}


def legacy(*entries, end=b""):
    data = struct.pack("<i", len(entries))
    for name, calls, values in entries:
        data += struct.pack("<i", len(name)) + name + struct.pack("<ii", calls, len(values))
        data += struct.pack(f"<{len(values)}f", *values)
    return data + end


def test_the_legacy_form_is_read(tmp_path):
    path = tmp_path / "m.dat"
    path.write_bytes(legacy((b"b", 0, [7, 8]), (b"a", 4, [2, 4]), end=struct.pack("<ii", 4, 5) + b"x.txt"))
    read = imatrix.read(path)
    assert (list(read.sums), read.datasets, read.chunks, read.chunk_size) == (["a", "b"], ("x.txt",), 4, 0)
    assert {name: values.tolist() for name, values in read.means().items()} == {"a": [0.5, 1], "b": [7, 8]}
    copy = imatrix.read(imatrix.write(read, tmp_path / "m.gguf"))
    assert copy.means()["a"].tolist() == [0.5, 1]
    path.write_bytes(legacy((b"a", 4, [2, 4])))  # what stands behind the entries may be missing
    assert imatrix.read(path).datasets == ()


NUMBERS = [hostile.u32("imatrix.chunk_count", 1), hostile.u32("imatrix.chunk_size", 1)]
PAIR = [hostile.tensor("w.in_sum2", (8,)), hostile.tensor("w.counts", (1,), 0, 32)]


def lying(keys=(KEYS_START, *NUMBERS), tensors=PAIR, *, data=b"", key_count=4):
    return hostile.gguf(keys, tensors, key_count=key_count, data=0) + data.ljust(256, b"\0")


REFUSED = {
    "empty": (b"", "entries"),
    "text": (b"The quick brown fox", "not an importance matrix"),
    "a model": (hostile.gguf(), "another kind"),
    "no counts of chunks": (lying((KEYS_START,), key_count=2), "chunk_count is missing"),
    "no partner": (lying(tensors=PAIR[:1]), "w.in_sum2 has no partner"),
    "another tensor": (lying(tensors=[*PAIR, hostile.tensor("x", (8,), 0, 64)]), "x has no partner"),
    "half precision": (lying(tensors=[hostile.tensor("w.in_sum2", (8,), 1), PAIR[1]]), "F16 where F32"),
    "sums that do not divide": (
        lying(tensors=[PAIR[0], hostile.tensor("w.counts", (3,), 0, 32)]),
        "8 sums for 3 counts",
    ),
    "not a number": (lying(data=struct.pack("<f", float("nan"))), "negative or not numbers"),
    "negative": (lying(data=struct.pack("<f", -1)), "negative or not numbers"),
    "a count that is none": (lying(data=bytes(32) + struct.pack("<f", 1e30)), "counts that are none"),
    "beyond the end": (lying(tensors=[hostile.tensor("w.in_sum2", (1 << 40,))]), "the file has"),
    "no entries": (lying(tensors=[]), "no entries"),
    "legacy, no entries": (legacy(), "not an importance matrix"),
    "legacy, a billion entries": (struct.pack("<i", 10**9), "not an importance matrix"),
    "legacy, a long name": (struct.pack("<ii", 1, 2**31 - 1), "the name of entry 0 has 2147483647 bytes"),
    "legacy, a negative name": (struct.pack("<ii", 1, -1), "has -1 bytes"),
    "legacy, more values than bytes": (
        struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", 1, 2**29),
        "a has 2147483648 bytes and 0 are left",
    ),
    "legacy, a negative size": (struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", 1, -2), "has -8 bytes"),
    "legacy, no values": (legacy((b"a", 1, [])), "0 sums"),
    "legacy, twice": (legacy((b"a", 1, [1]), (b"a", 1, [1])), "was there before"),
    "legacy, more behind": (legacy((b"a", 1, [1]), end=struct.pack("<ii", 1, 0) + b"x"), "1 bytes follow"),
}


@pytest.mark.parametrize(("data", "words"), REFUSED.values(), ids=REFUSED)
def test_a_hostile_file_is_refused(tmp_path, data, words):
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    with pytest.raises(UnsafeFile, match=words) as refusal:
        imatrix.read(path)
    assert str(refusal.value).startswith("m.gguf: ")
    assert str(refusal.value).count("m.gguf") == 1


def test_every_cut_of_a_file_is_refused(tmp_path):
    whole = imatrix.write(matrix(), tmp_path / "whole.gguf").read_bytes()
    path = tmp_path / "m.gguf"
    for size in range(len(whole) - 32):  # the last block is padded
        path.write_bytes(whole[:size])
        with pytest.raises(UnsafeFile):
            imatrix.read(path)


def test_a_missing_file_and_a_name_too_long_are_refused(tmp_path):
    with pytest.raises(ModelNotFound):
        imatrix.read(tmp_path / "none.gguf")
    long = Importance({"x" * 60: np.ones((1, 1), np.float32)}, {"x" * 60: np.array([1])}, (), 1, 1)
    with pytest.raises(RequestError, match="too long"):
        imatrix.write(long, tmp_path / "m.gguf")


def add_bos(writer, wanted, _):
    """In place of GGUFWriter.add_add_bos_token: what the test wants, not what the tiny tokenizer says."""
    writer.add_bool("tokenizer.ggml.add_bos_token", wanted)


class Recorder:
    """numpy_ops, with the mean squared input of every linear layer kept by the weight's name."""

    def __init__(self, weights):
        self.names = {id(values): name for name, values in weights.items()}
        self.means = {}

    def __getattr__(self, name):
        return getattr(numpy_ops, name)

    def linear(self, x, weight, bias=None):
        self.means.setdefault(self.names[id(weight)], []).append((x * x).mean(axis=0))
        return numpy_ops.linear(x, weight, bias)


@pytest.mark.parametrize(
    ("raw", "bos"), [(BASE, False), (BASE, True), (BERT, False)], ids=["llama", "llama with BOS", "bert"]
)
def test_what_is_collected_is_what_the_reference_computes(tmp_path, raw, bos, monkeypatch):
    family = family_of(raw)
    config = family.read_config(raw)
    weights = random_weights(family, config)
    monkeypatch.setattr(collect, "BATCH", 48)  # llama reads a chunk in two parts, BERT never
    monkeypatch.setattr(gguf.GGUFWriter, "add_add_bos_token", partialmethod(add_bos, bos))
    path = f32_file(tmp_path / "m.gguf", family, config, weights)
    steps = []
    collected = collect.collect(
        path, TEXT, chunk=64, threads=1, name="t", progress=lambda *step: steps.append(step)
    )
    with collect.loaded(path, vocab_only=True) as model:
        ids = np.array(collect.Vocab(model).tokens(TEXT))

    chunks = len(ids) // 64
    assert chunks > 1
    assert len(ids) % 64
    assert steps == [(index + 1, chunks) for index in range(chunks)]
    assert (collected.datasets, collected.chunks, collected.chunk_size) == (("t",), chunks, 64)
    exact = {name: values.astype(np.float64) for name, values in weights.items()}
    recorder = Recorder(exact)
    for piece in ids[: 64 * chunks].reshape(chunks, 64).copy():
        if bos:
            piece[0] = 1
        family.forward(recorder, exact.__getitem__, config, piece)
    targets = {weight.source: weight.target for weight in family.weights(config)}
    wanted = {
        targets[name]: np.mean(means, axis=0)
        for name, means in recorder.means.items()
        if targets[name].startswith("blk.")
    }
    means = collected.means()
    assert means.keys() == wanted.keys()
    for name, values in wanted.items():
        assert np.abs(means[name] - values).max() < 1e-3 * values.max(), name
        assert collected.counts[name].tolist() == [64 * chunks]


def test_parts_of_a_chunk_add_up(tmp_path, monkeypatch):
    path = tiny_llama(tmp_path / "m.gguf")
    whole = collect.collect(path, TEXT, chunk=200, threads=1, name="t").means()
    monkeypatch.setattr(collect, "BATCH", 70)
    parts = collect.collect(path, TEXT, chunk=200, threads=1, name="t").means()
    for name, values in whole.items():
        assert np.allclose(parts[name], values, rtol=1e-3), name


def test_a_chunk_is_no_longer_than_the_context_the_model_was_trained_with(tmp_path):
    path = tiny_llama(tmp_path / "m.gguf", ctx=96)
    assert collect.collect(path, TEXT, threads=1, name="t").chunk_size == 96


def test_experts_are_counted_by_what_they_were_given(tmp_path):
    path = mixture(tmp_path / "moe.gguf", experts=4, used=2)
    collected = collect.collect(path, TEXT, chunk=64, threads=1, name="t")
    tokens = 64 * collected.chunks
    for name in ("gate", "up", "down"):
        assert collected.counts[f"blk.0.ffn_{name}_exps.weight"].sum() == 2 * tokens
        assert collected.sums[f"blk.0.ffn_{name}_exps.weight"].shape[0] == 4
    # every token's input is summed by the router once and by the experts it goes to twice
    router, experts = (
        collected.sums["blk.0.ffn_gate_inp.weight"],
        collected.sums["blk.0.ffn_gate_exps.weight"],
    )
    assert np.allclose(2 * router[0], experts.sum(axis=0), rtol=1e-4)
    again = imatrix.read(imatrix.write(collected, tmp_path / "moe.imatrix.gguf"))
    assert np.array_equal(
        again.means()["blk.0.ffn_up_exps.weight"], collected.means()["blk.0.ffn_up_exps.weight"]
    )


def test_sums_by_expert_and_by_matrix_are_those_of_a_plain_loop():
    draw = np.random.default_rng(0)
    ids = np.array([draw.permutation(5)[:2] for _ in range(9)], np.int32)
    for slots in (1, 2):
        x = draw.standard_normal((9, slots, 3)).astype(np.float32)
        wanted = np.zeros((5, 3))
        for token, chosen in enumerate(ids):
            for slot, expert in enumerate(chosen):
                wanted[expert] += x[token, slot % slots].astype(np.float64) ** 2
        sums, counts = collect.by_expert(x, ids, 5)
        assert np.allclose(sums, wanted, rtol=1e-5)
        assert counts.tolist() == np.bincount(ids.ravel(), minlength=5).tolist()
    x = draw.standard_normal((2, 6, 4, 3)).astype(np.float32)
    by_matrix = (x.astype(np.float64) ** 2).sum(axis=2).reshape(2, 2, 3, 3).sum(axis=(0, 1))
    assert np.allclose(collect.by_matrix(x, 3, 1), by_matrix, rtol=1e-5)


def test_a_text_shorter_than_a_chunk_says_how_much_is_needed(tmp_path):
    path = tiny_llama(tmp_path / "m.gguf")
    with pytest.raises(RequestError, match=r"the text is \d+ tokens and a chunk 256") as refusal:
        collect.collect(path, "too short", threads=1, name="t")
    assert refusal.value.hint == "give one of at least 256 tokens"
    with pytest.raises(RequestError, match="8 tokens is too short"):
        collect.collect(path, TEXT, chunk=8, threads=1, name="t")


def mapped(path):
    return str(path) in Path("/proc/self/maps").read_text()


def test_what_the_progress_raises_comes_out_as_itself_and_nothing_is_left(tmp_path):
    path = tiny_llama(tmp_path / "m.gguf")

    def progress(done, total):
        assert mapped(path)
        raise ZeroDivisionError(f"{done} of {total}")

    with pytest.raises(ZeroDivisionError, match="1 of"):
        collect.collect(path, TEXT, chunk=64, threads=1, name="t", progress=progress)
    assert not mapped(path)


def test_ctrl_c_stops_a_batch_and_nothing_is_left(tmp_path, monkeypatch):
    path = tiny_llama(tmp_path / "m.gguf")
    take, taken = collect.Collector._take, []

    def interrupted(self, tensor):
        taken.append(1)
        signal.raise_signal(signal.SIGINT)
        return take(self, tensor)

    monkeypatch.setattr(collect.Collector, "_take", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collect.collect(path, TEXT, chunk=64, threads=1, name="t")
    assert len(taken) == 1  # the rest of the batch was not computed
    assert not mapped(path)


def test_weights_that_compute_no_numbers_are_said(tmp_path):
    config = llama.read_config(BASE)
    weights = random_weights(llama, config)
    weights["model.embed_tokens.weight"][:] = np.inf
    path = f32_file(tmp_path / "m.gguf", llama, config, weights)
    with pytest.raises(ConversionError, match=r"inputs of blk\.0\.attn_\w+\.weight are not finite"):
        collect.collect(path, TEXT, chunk=64, threads=1, name="t")
    assert not mapped(path)


def test_a_damaged_model_is_refused_before_llama_cpp_sees_it(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(hostile.gguf(tensor_count=1 << 60))
    with pytest.raises(BadGGUF, match="claims"):
        collect.collect(path, TEXT, name="t")


def test_a_llama_cpp_with_other_tensors_is_refused(monkeypatch):
    class Shifted(ctypes.Structure):
        _fields_ = (
            *ggml_tensors.Tensor._fields_[:2],
            ("more", ctypes.c_int64),
            *ggml_tensors.Tensor._fields_[2:],
        )

    library = binding()._lib
    assert ggml_tensors.looked_at(library).mul_mat != ggml_tensors.looked_at(library).mul_mat_id
    monkeypatch.setattr(ggml_tensors, "Tensor", Shifted)
    with pytest.raises(EngineError, match="lie differently"):
        ggml_tensors.looked_at(library)


def test_layers_that_are_left_out_are_left_out_of_the_matrix_too(tmp_path):
    """They are counted anew: the matrix of the whole would give each the importance of another."""
    source = tiny_checkpoints.write("llama", tmp_path / "model")
    settings = Settings(prune_layers=(0,), threads=1)
    (pruned,) = convert(source, ["f32"], tmp_path, settings=settings, prove=False)
    expected = collect.collect(pruned.path, TEXT * 20, name="text", threads=1)
    found = calibrate(source, TEXT * 20, "text", tmp_path, settings=settings)
    assert found.sums.keys() == expected.sums.keys()
    for name in found.sums:
        assert found.sums[name] == pytest.approx(expected.sums[name], rel=1e-3)
