"""`edge convert --to onnx` as it is called."""

import json
from functools import partial
from pathlib import Path

import pytest
import tiny_checkpoints

pytest.importorskip("onnxruntime")

from edge.cli import run
from edge.convert.onnx import computed
from edge.onnx.session import Session


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setattr(computed, "Session", partial(Session, threads=1))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny_checkpoints.write("bert-classifier", tmp_path_factory.mktemp("source") / "model")


def test_levels_certificates_and_the_closing_table(source, tmp_path, capsys):
    lines = tmp_path / "lines.txt"
    lines.write_text("one line\nanother one\n")
    words = ["convert", str(source), "--to", "onnx", "--level", "fp32, INT8", "--out", str(tmp_path / "out")]
    assert run([*words, "--name", "mine", "--agreement", str(lines)]) == 0
    captured = capsys.readouterr()
    table = captured.out.splitlines()
    assert table[0].split() == ["LEVEL", "SIZE", "BITS/WEIGHT", "SECONDS", "ERROR", "KLD", "TOP-1"]
    assert [line.split()[0] for line in table[1:3]] == ["fp32", "int8"]
    assert table[3].startswith("int8 beside fp32 on 2 lines: ")
    assert max(map(len, table[:4])) <= 80
    assert captured.err == ""
    names = [path.name for path in sorted((tmp_path / "out").iterdir())]
    assert names == ["mine-fp32", "mine-int8"]
    assert [Path(line.strip()).name for line in table[-2:]] == names


def test_int8_is_made_unless_a_level_is_named_and_json_has_all(source, tmp_path, capsys):
    assert run(["convert", str(source), "--to", "onnx", "--out", str(tmp_path), "--json"]) == 0
    (made,) = json.loads(capsys.readouterr().out)
    assert made["path"] == str(tmp_path / "model-int8")
    assert made["certificate"]["comparison"]["top1_agreement"] == 1
    assert run(["convert", str(source), "--to", "onnx", "--out", str(tmp_path), "--no-proof"]) == 1
    assert "is there already" in capsys.readouterr().err


def test_a_dry_run_and_the_list_of_levels_write_nothing(source, tmp_path, capsys):
    words = ["convert", str(source), "--to", "onnx", "--level", "fp32,int4", "--out", str(tmp_path / "out")]
    assert run([*words, "--dry-run", "--json"]) == 0
    whole, small = json.loads(capsys.readouterr().out)
    assert whole["bytes"] > small["bytes"]
    assert not (tmp_path / "out").exists()
    assert run(["convert", "--levels", "--to", "onnx"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed[1:]] == ["fp32", "fp16", "int8", "int8w", "int4"]
    assert max(map(len, listed)) <= 80


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--to", "onnx", "--threads", "2"], "--threads does not go with --to onnx"),
        (["--to", "onnx", "--imatrix", "x"], "--imatrix does not go with --to onnx"),
        (["--to", "gguf", "--agreement", "x"], "--agreement does not go with making GGUF files"),
        (["--to", "onnx", "--level", "q4_k_m"], "'q4_k_m' is no level of ONNX"),
        (["--to", "onnx", "--agreement", "x", "--no-proof"], "without certificates"),
    ],
)
def test_options_that_do_not_apply_are_refused(source, tmp_path, capsys, options, why):
    assert run(["convert", str(source), "--out", str(tmp_path), *options]) == 2
    assert why in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_family_without_a_gguf_form_is_told_of_onnx(tmp_path, capsys):
    source = tiny_checkpoints.write("electra", tmp_path / "model")
    assert run(["convert", str(source), "--out", str(tmp_path / "out")]) == 1
    assert "--to onnx" in capsys.readouterr().err
    assert run(["convert", str(source), "--to", "onnx", "--out", str(tmp_path / "out")]) == 0


def test_show_believes_the_certificate_of_a_model_whose_weights_lie_beside_its_graph(tmp_path, capsys):
    decoder = tiny_checkpoints.write("llama-tied", tmp_path / "decoder")
    assert run(["convert", str(decoder), "--to", "onnx", "--out", str(tmp_path)]) == 0
    folder = tmp_path / "decoder-int8"
    assert (folder / "model.onnx.data").is_file()
    capsys.readouterr()
    assert run(["show", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["certificate"]["comparison"]["logit_error"] < 0.5
    with (folder / "model.onnx.data").open("ab") as file:
        file.write(b"more")
    assert run(["show", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["certificate"] is None


@pytest.mark.parametrize("damaged", ["model.onnx", "model.onnx.data"])
def test_verify_holds_a_converted_folder_against_its_certificate(damaged, tmp_path, capsys):
    decoder = tiny_checkpoints.write("llama-tied", tmp_path / "decoder")
    assert run(["convert", str(decoder), "--to", "onnx", "--out", str(tmp_path)]) == 0
    folder = tmp_path / "decoder-int8"
    capsys.readouterr()
    for ref in (folder, folder / "model.onnx"):
        assert run(["verify", str(ref)]) == 0
        assert "whole: the weights are those of certificate.json" in capsys.readouterr().out
    flip(folder / damaged)
    assert run(["verify", str(folder)]) == 3
    printed = capsys.readouterr()
    assert f"{damaged} has sha256 " in printed.out
    assert (
        "damaged: decoder-int8; it is not what certificate.json states: convert or copy it again"
        in printed.err
    )
    (folder / damaged).unlink()
    if damaged != "model.onnx":
        assert run(["verify", str(folder), "--json"]) == 3
        (said,) = json.loads(capsys.readouterr().out)
        assert said["problems"] == [f"{folder / damaged} is missing"]
        assert said["certificate"] == str(folder / "certificate.json")


def test_verify_holds_a_gguf_file_against_the_certificate_beside_it(tmp_path, capsys):
    decoder = tiny_checkpoints.write("llama-tied", tmp_path / "decoder")
    assert run(["convert", str(decoder), "--level", "f16", "--out", str(tmp_path)]) == 0
    (file,) = tmp_path.glob("*.gguf")
    capsys.readouterr()
    assert run(["verify", str(file)]) == 0
    assert f"whole: the weights are those of {file.stem}.json" in capsys.readouterr().out
    flip(file)
    assert run(["verify", str(file)]) == 3
    assert f"{file.name} has sha256 " in capsys.readouterr().out
    file.with_suffix(".json").unlink()
    assert run(["verify", str(file)]) == 2
    assert "no hash is known" in capsys.readouterr().err


def flip(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
