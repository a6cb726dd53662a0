"""`edge embed`: one text, JSON lines, an array."""

import json

import numpy as np
import pytest
from word_encoders import cross_encoder, embedder

from edge.cli import run


@pytest.fixture
def encoder(tmp_path):
    return str(embedder(tmp_path / "tiny"))


def test_one_text_is_shown_shortly(encoder, capfd):
    assert run(["embed", encoder, "good film"]) == 0
    assert capfd.readouterr().out.startswith("16 numbers, length 1.0000: ")


def test_lines_become_json_or_an_array(encoder, tmp_path, capfd):
    texts = tmp_path / "texts.txt"
    texts.write_text("good\n\nbad film\n")
    assert run(["embed", encoder, "--input", str(texts), "--json"]) == 0
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == ["good", "", "bad film"]
    assert rows[1]["embedding"] is None
    out = tmp_path / "a.npy"
    assert run(["embed", encoder, "--input", str(texts), "--out", str(out)]) == 0
    found = np.load(out)
    assert found[0].tolist() == np.array(rows[0]["embedding"], np.float32).tolist()
    assert "3 × 16 float32" in capfd.readouterr().err


@pytest.mark.parametrize(
    "options", [["x", "--input", "f"], [" "], ["x", "--out", "a.txt"], ["x", "--out", "a.npy", "--json"]]
)
def test_options_that_do_not_go_together_are_refused(encoder, options):
    assert run(["embed", encoder, *options]) == 2


def test_a_classifier_is_refused_with_its_verb(tmp_path, capfd):
    assert run(["embed", str(cross_encoder(tmp_path / "cross")), "good"]) == 2
    assert "edge classify" in capfd.readouterr().err
