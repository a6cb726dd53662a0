"""`edge rerank`: a table or JSON lines, the best text first."""

import json

import pytest
from word_encoders import cross_encoder, embedder

from edge.cli import run


@pytest.mark.parametrize("make", [embedder, cross_encoder])
def test_the_best_texts_are_printed_with_their_lines(make, tmp_path, capfd):
    encoder, texts = str(make(tmp_path / "tiny")), tmp_path / "texts.txt"
    texts.write_text("bad film\n\ngood\ncash\n")
    assert run(["rerank", encoder, "good", "--input", str(texts), "--json", "--top", "1"]) == 0
    (row,) = map(json.loads, capfd.readouterr().out.splitlines())
    assert (row["text"], row["line"]) == ("good", 3)
    assert run(["rerank", encoder, "good", "--input", str(texts)]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].split() == ["SCORE", "LINE", "TEXT"]
    assert lines[1].split()[1:] == ["3", "good"]
    assert len(lines) == 4
    assert run(["rerank", encoder, " ", "--input", str(texts)]) == 2
