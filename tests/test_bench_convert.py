"""The benchmark of conversion: real processes on a tiny checkpoint, a checkpoint of holes."""

import pytest
import tiny_checkpoints

from edge.bench import convert as bench
from edge.convert import checkpoint
from edge.convert.families import llama
from edge.errors import RequestError

pytest.importorskip("tokenizers")


def test_converters_take_turns_and_ours_leaves_its_files_to_nobody(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "scratch").mkdir()
    source = tiny_checkpoints.write("llama", tmp_path / "checkpoint")
    found = bench.compare(source, repetitions=1)
    assert [one.name for one in found.processes] == ["edge convert --no-proof", "edge convert"]
    assert all(0 < one.wall_s.median < 60 and one.peak_rss_bytes > 10 << 20 for one in found.processes)
    assert found.ratios == {}  # no peer is named
    assert not list((tmp_path / "scratch").iterdir())


def test_ratios_are_of_the_same_turn_and_above_1_where_ours_is_better():
    samples = {"edge convert": [(1.0, 100), (4.0, 100)], bench.PEER: [(3.0, 400), (8.0, 500)]}
    found = bench.summary(samples)
    assert (found.ratios["edge convert"]["wall"].low, found.ratios["edge convert"]["wall"].high) == (2, 3)
    assert found.ratios["edge convert"]["peak_rss"].median == 4.5
    assert "| edge convert | 2.50 (2.00–3.00) | 4.50 (4.00–5.00) |" in bench.lines(
        found.processes, found.ratios
    )


def test_a_peer_named_by_half_is_refused(tmp_path, monkeypatch):
    assert bench.peer(tmp_path, tmp_path) is None
    monkeypatch.setenv("EDGE_TORCH_PYTHON", "python3")
    with pytest.raises(RequestError, match="EDGE_CONVERT_HF"):
        bench.peer(tmp_path, tmp_path)
    monkeypatch.setenv("EDGE_CONVERT_HF", "convert.py")
    assert bench.peer(tmp_path, tmp_path)[:2] == ["python3", "convert.py"]


def test_what_fails_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["convert", "memory", str(tmp_path), "--level", "q99"])
    with pytest.raises(SystemExit, match="1"):
        bench.main()
    assert capsys.readouterr().err.count("\n") == 1


def test_a_checkpoint_of_holes_has_every_tensor_and_takes_no_room(tmp_path):
    words = tiny_checkpoints.write("llama", tmp_path / "words")
    config = {**bench.LLAMA_2_7B, "num_hidden_layers": 2}
    folder = bench.sparse_checkpoint(tmp_path / "sparse", words, config, shard_bytes=500_000_000)
    with checkpoint.open(folder) as original:
        table = {weight.source: weight.shape for weight in llama.weights(llama.read_config(config))}
        assert {name: tensor.shape for name, tensor in original.tensors.items()} == table
        assert not next(original.chunks("model.layers.1.mlp.up_proj.weight", 1 << 20)).any()
    files = [path.stat() for path in folder.glob("*.safetensors")]
    assert len(files) > 1
    assert all(file.st_size < 501_000_000 for file in files)
    assert sum(file.st_blocks * 512 for file in files) < 1 << 20 < sum(file.st_size for file in files)
