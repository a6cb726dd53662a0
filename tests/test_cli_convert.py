"""`edge convert` as it is called."""

import json
from pathlib import Path

import pytest

from edge.cli import run

pytest.importorskip("tokenizers")
SOURCE = Path(__file__).parents[2] / "shared" / "checkpoints" / "llama2-arch-20m"
pytestmark = pytest.mark.skipif(
    not SOURCE.exists(), reason="the trained checkpoint lies beside the repository"
)


def test_levels_certificates_and_the_closing_table(tmp_path, capsys):
    assert (
        run(["convert", str(SOURCE), "--level", "f16,q4_k_m", "--out", str(tmp_path), "--name", "war"]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("LEVEL")
    assert [line.split()[0] for line in lines[1:]] == ["f16", "q4_k_m"]
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"war-{level}.{ending}" for level in ("f16", "q4_k_m") for ending in ("gguf", "json")}
    assert run(["generate", str(tmp_path / "war-q4_k_m.gguf"), "The prince", "--max-tokens", "5"]) == 0


def test_json_and_types_for_single_tensors(tmp_path, capsys):
    asked = [
        "--tensor-type",
        "ffn_down=q8_0",
        "--output-type",
        "q6_K",
        "--max-buffer",
        "1MiB",
        "--threads",
        "1",
    ]
    assert run(["convert", str(SOURCE), "--level", "q4_k_s", "--out", str(tmp_path), *asked, "--json"]) == 0
    (made,) = json.loads(capsys.readouterr().out)
    types = made["certificate"]["tensor_types"]
    assert (types["blk.0.ffn_down.weight"], types["output.weight"], types["blk.0.attn_q.weight"]) == (
        "Q8_0",
        "Q6_K",
        "Q4_K",
    )


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["no-such-folder"], 1, "no-such-folder"),
        ([str(SOURCE), "--level", "q99"], 2, "'q99' is not a level"),
        ([str(SOURCE), "--tensor-type", "q8_0"], 2, "is not REGEX=TYPE"),
        ([str(SOURCE), "--prune-layers", "x"], 2, "is no list of layers"),
        ([str(SOURCE), "--level", "q4_0", "--output-type", "q9_9"], 2, "is no tensor type"),
        ([str(SOURCE.parent / "sst2-bert-tiny")], 1, "BertForSequenceClassification is not an architecture"),
    ],
)
def test_what_cannot_be_converted_is_one_line_and_leaves_nothing(tmp_path, capsys, words, code, line):
    assert run(["convert", *words, "--out", str(tmp_path / "out")]) == code
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
