"""The benchmark of encoders: real processes on tiny models, held to shapes and arithmetic, not to speeds."""

import json
import shutil
import sys

import pytest
import tiny_checkpoints
import tiny_classifiers

from edge.bench import classify as bench
from edge.bench import classify_accuracy, classify_memory, classify_speed
from edge.errors import EngineError, RequestError

TEXTS = ["so good", "bad", "good bad so", "so so so"]


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr("sys.argv", ["classify", *map(str, words)])
    bench.main()
    return capsys.readouterr().out


def test_forms_take_turns_beside_a_plain_run_of_the_graph(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("EDGE_TORCH_PYTHON", raising=False)
    model = tiny_classifiers.feelings(tmp_path / "feelings")
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    shutil.copy(model / "tokenizer.json", checkpoint)
    (tmp_path / "texts.txt").write_text("\n".join([*TEXTS, "", "more"]), encoding="utf-8")
    words = ["speed", model, "--texts", tmp_path / "texts.txt", "--count", 4, "--threads", 1]
    words += ["--repetitions", 1, "--checkpoint", checkpoint, "--plain", model / "model.onnx"]
    first, _, _, _, ours, plain = run(monkeypatch, capsys, *words).splitlines()
    assert first == "4 texts, 1 threads"
    assert ours.startswith("| edge onnxruntime-cpu ")
    assert "| 1.00 (1.00–1.00) |" in ours
    assert plain.startswith("| onnxruntime model.onnx, batches of 32 | ")


def test_ratios_are_of_the_same_turn_and_above_1_where_ours_is_faster():
    ours = [{"wall_s": 1.0, "cores_s": 2.0}, {"wall_s": 4.0, "cores_s": 4.0}]
    peer = [{"wall_s": 3.0, "cores_s": 2.0}, {"wall_s": 8.0, "cores_s": 2.0}]
    found = classify_speed.summary(["edge", "torch"], [ours, peer], 8, 2)
    assert (found.paces[0].by_wall.high, found.paces[1].by_wall.low) == (8, 1)
    assert (found.by_wall[0].low, found.by_wall[0].high) == (1, 1)
    assert (found.by_wall[1].low, found.by_wall[1].high) == (2, 3)
    assert (found.by_cores[1].low, found.by_cores[1].high) == (0.5, 1)


def test_a_runtime_that_ends_is_an_error():
    with pytest.raises(EngineError, match="ended before"):
        classify_speed.Worker([sys.executable, "-c", "pass"])


def test_every_level_is_scored_on_a_test_set(tmp_path, monkeypatch, capsys):
    checkpoint = tiny_checkpoints.write("bert-classifier", tmp_path / "checkpoint")
    config = json.loads((checkpoint / "config.json").read_text())
    label = config["id2label"]["0"] if "id2label" in config else "LABEL_0"
    test = tmp_path / "test.tsv"
    test.write_text(f"one text\t{label}\nanother\t{label}\n", encoding="utf-8")
    table = run(monkeypatch, capsys, "accuracy", checkpoint, test, "--levels", "fp32,int8").splitlines()
    assert table[0] == "| checkpoint | texts | measure | fp32 | int8 |"
    assert table[2].startswith("| checkpoint | 2 | accuracy | ")


def test_differences_are_points_from_the_first_level():
    scores = classify_accuracy.Scores("finance", 691, "accuracy", (0.93, 0.925))
    assert classify_accuracy.lines([scores], ["fp32", "int8"])[-1] == (
        "| finance | 691 | accuracy | 93.00 | 92.50 (-0.50) |"
    )


def test_memory_is_sampled_while_every_line_is_answered(tmp_path):
    model = tiny_classifiers.feelings(tmp_path / "feelings")
    found = classify_memory.memory(str(model), TEXTS, lines=3000, every=0.02)
    assert len(found.samples) > 3
    assert 5 << 20 < max(one.rss_bytes for one in found.samples) < 1 << 30
    assert [one.lines for one in found.samples] == sorted(one.lines for one in found.samples)
    assert "3,000 lines in " in classify_memory.lines(found)[-1]
    classify_memory.draw(found, "tiny", tmp_path / "memory.png")
    assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")


def test_growth_is_the_last_quarter_over_the_first_once_loaded():
    def course(*sizes):
        samples = [classify_memory.Sample(float(at), 10 * at, size << 20) for at, size in enumerate(sizes)]
        return classify_memory.Course(10 * (len(sizes) - 1), 1.0, tuple(samples)).growth_bytes >> 20

    assert course(5, 90, 80, 90, 90, 90, 90, 90, 70) == 0
    assert course(5, 50, 60, 70, 80, 90, 100, 110, 120) == 60


def test_a_run_that_fails_is_an_error():
    with pytest.raises(EngineError, match="exited with 3 after 1 of 2 lines"):
        classify_memory.watched([sys.executable, "-c", "print('a'); raise SystemExit(3)"], 2, 0.01)


def test_what_cannot_be_measured_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["classify", "accuracy", str(tmp_path)])
    with pytest.raises(SystemExit):
        bench.main()
    assert "has no test set" in capsys.readouterr().err
    with pytest.raises(RequestError, match="tokenizer"):
        classify_speed.speed(["x"], TEXTS, plain=tmp_path / "model.onnx")
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(RequestError, match="no texts"):
        bench.texts_of(tmp_path / "empty.txt", None)
