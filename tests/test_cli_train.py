"""`edge train`, what it prints, and the model that classify and convert take by its name."""

import json
import re

import pytest
from word_encoders import embedder

from edge.cli import run


@pytest.fixture
def trained(tmp_path, capsys):
    data = tmp_path / "data.csv"
    rows = [
        f"the {word} film {at},{label}"
        for at in range(4)
        for word, label in (("good", "up"), ("bad", "down"))
    ]
    data.write_text("\n".join(["text,mood", *rows]))
    command = [
        "train",
        str(embedder(tmp_path / "tiny")),
        "--data",
        str(data),
        "--label-field",
        "mood",
        "--as",
        "moods",
    ]

    def train(*more):
        code = run([*command, *more])
        return code, capsys.readouterr()

    return train


def test_the_report_and_how_it_was_trained_are_printed(trained, capsys, tmp_path):
    code, printed = trained()
    assert code == 0
    assert "accuracy 1.0000 of 8 texts" in printed.out
    assert "reported on held-out folds" in printed.out
    assert "4 folds and no more, since down has 4 rows" in printed.out
    assert "not calibrated, since 8 rows are too few (fewer than 50)" in printed.out
    assert re.search(r"embedding \d+\.\d s, fitting \d+\.\d s", printed.out)
    assert "-0.0" not in printed.out
    assert "kept as moods" in printed.out
    assert run(["convert", "moods", "--to", "onnx", "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out/moods-fp32/certificate.json").exists()
    assert run(["convert", "moods", "--to", "onnx", "--level", "int4", "--out", str(tmp_path)]) == 2
    assert "trained on an encoder at fp32" in capsys.readouterr().err
    for form in ("gguf", "safetensors"):
        assert run(["convert", "moods", "--to", form, "--out", str(tmp_path)]) == 2
        assert "export it with --to onnx" in capsys.readouterr().err
    code, printed = trained()
    assert code == 2
    assert "moods is kept already" in printed.err


def test_json_has_all_of_it(trained):
    code, printed = trained("--json")
    found = json.loads(printed.out)
    assert code == 0
    assert found["report"]["accuracy"] == 1.0
    assert (found["model"]["name"], found["folds"], found["counts"]) == ("moods", 4, {"down": 4, "up": 4})
