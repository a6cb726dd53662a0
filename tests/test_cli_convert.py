"""`edge convert` as it is called."""

import json
from pathlib import Path

import pytest
import tiny_checkpoints

from edge import gguf_header
from edge.cli import run

SHARED = Path(__file__).parents[2] / "shared" / "checkpoints"
beside = pytest.mark.skipif(not SHARED.exists(), reason="trained checkpoints lie beside the repository")
WORDS = "The ferry left late, and nobody on the quay seemed to mind. " * 40


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny_checkpoints.write("llama", tmp_path_factory.mktemp("source") / "model")


def test_levels_certificates_and_the_closing_table(source, tmp_path, capsys):
    words = ["convert", str(source), "--level", "f16, Q4_K_M", "--out", str(tmp_path), "--name", "war"]
    assert run(words) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0].split() == [
        "LEVEL",
        "SIZE",
        "BITS/WEIGHT",
        "FELL",
        "BACK",
        "SECONDS",
        "ERROR",
        "KLD",
        "TOP-1",
    ]
    assert [line.split()[0] for line in lines[1:3]] == ["f16", "q4_k_m"]
    assert lines[1].split()[-1].endswith("%")
    assert max(map(len, lines[:3])) <= 80
    assert "q4_k_m: " in lines[3]
    assert "do not divide into blocks" in lines[3]
    assert captured.err == ""
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"war-{level}.{ending}" for level in ("f16", "q4_k_m") for ending in ("gguf", "json")}
    assert run(["generate", str(tmp_path / "war-q4_k_m.gguf"), "the", "--max-tokens", "5"]) == 0


def test_json_and_types_for_single_tensors(source, tmp_path, capsys):
    asked = [
        "--tensor-type",
        "ffn_down=q8_0",
        "--output-type",
        "q5_0",
        "--max-buffer",
        "1MiB",
        "--threads",
        "1",
    ]
    assert run(["convert", str(source), "--level", "q4_0", "--out", str(tmp_path), *asked, "--json"]) == 0
    (made,) = json.loads(capsys.readouterr().out)
    types = made["certificate"]["tensor_types"]
    assert (types["blk.0.ffn_down.weight"], types["output.weight"], types["blk.0.attn_q.weight"]) == (
        "Q8_0",
        "Q5_0",
        "Q4_0",
    )
    assert made["peak_rss_bytes"] > 10 << 20
    assert made["bytes"] == (tmp_path / "model-q4_0.gguf").stat().st_size


def test_a_dry_run_gives_the_size_to_the_byte_and_writes_nothing(source, tmp_path, capsys):
    assert (
        run(["convert", str(source), "--level", "q4_0,iq2_xs", "--out", str(tmp_path), "--dry-run", "--json"])
        == 0
    )
    sizes = {one["level"]: one for one in json.loads(capsys.readouterr().out)}
    assert list(tmp_path.iterdir()) == []
    assert sizes["iq2_xs"]["fell_back"]
    assert run(["convert", str(source), "--level", "q4_0", "--out", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["bytes"] == sizes["q4_0"]["bytes"]


def test_the_levels_are_listed_with_their_bits(capsys):
    assert run(["convert", "--levels"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[1:]}
    assert lines["q8_0"].split()[1] == "8.50"
    assert (
        lines["q4_k_m"].split()[1] == "4.89"
    )  # Meta-Llama-3-8B at Q4_K_M, as llama.cpp's quantize prints it
    assert "importance matrix" in lines["iq1_s"]


def test_a_matrix_is_made_kept_and_used_again(source, tmp_path, capsys):
    text = tmp_path / "words.txt"
    text.write_text(WORDS, encoding="utf-8")
    out = tmp_path / "out"
    asked = ["convert", str(source), "--level", "q4_0", "--no-proof", "--out"]
    assert run([*asked, str(out), "--calibrate", str(text)]) == 0
    matrix = out / "model.imatrix.gguf"
    assert run([*asked, str(tmp_path / "again"), "--imatrix", str(matrix)]) == 0
    first, second = out / "model-q4_0.gguf", tmp_path / "again" / "model-q4_0.gguf"
    assert first.read_bytes() == second.read_bytes()
    metadata = gguf_header.read(first).metadata
    assert metadata["quantize.imatrix.file"] == "model.imatrix.gguf"
    assert metadata["quantize.imatrix.dataset"] == "words.txt"
    assert metadata["edge.proof"] == "none"
    assert run([*asked, str(tmp_path / "plain")]) == 0
    assert (tmp_path / "plain" / "model-q4_0.gguf").read_bytes() != first.read_bytes()


def test_a_file_made_elsewhere_is_certified_or_refused(source, tmp_path, capsys):
    assert run(["convert", str(source), "--no-proof", "--out", str(tmp_path)]) == 0
    file = tmp_path / "model-f16.gguf"
    capsys.readouterr()
    assert run(["convert", "--check", str(file), "--against", str(source)]) == 0
    assert "computes what its source does: logit error" in capsys.readouterr().out
    assert json.loads(file.with_suffix(".json").read_text())["level"] == "f16"
    assert run(["convert", "--check", str(file), "--against", str(source)]) == 1
    assert "model-f16.json is there already" in capsys.readouterr().err
    other = tiny_checkpoints.write("llama-llama3-rope", tmp_path / "other")
    file.with_suffix(".json").unlink()
    assert run(["convert", "--check", str(source / "config.json"), "--against", str(source)]) == 3
    assert "not GGUF" in capsys.readouterr().err
    assert run(["convert", "--check", str(file), "--against", str(other)]) == 1
    assert "does not compute what its source does" in capsys.readouterr().err
    assert not file.with_suffix(".json").exists()


def test_a_gguf_file_is_made_smaller_and_says_what_it_came_from(source, tmp_path, capsys):
    assert run(["convert", str(source), "--level", "q8_0", "--no-proof", "--out", str(tmp_path)]) == 0
    words = ["convert", str(tmp_path / "model-q8_0.gguf"), "--level", "q4_0", "--out", str(tmp_path)]
    assert run(words) == 0
    assert "note: made from a file at Q8_0: what that lost stays lost" in capsys.readouterr().out
    header = gguf_header.read(tmp_path / "model-q4_0.gguf")
    assert (header.quantization, header.metadata["edge.requantized_from"]) == ("Q4_0", "Q8_0")


def test_there_and_back_and_there_again(source, tmp_path, capsys):
    assert run(["convert", str(source), "--level", "f32", "--out", str(tmp_path)]) == 0
    file = tmp_path / "model-f32.gguf"
    assert run(["convert", str(file), "--to", "safetensors", "--out", str(tmp_path), "--name", "back"]) == 0
    assert run(["convert", str(tmp_path / "back"), "--level", "f32", "--out", str(tmp_path)]) == 0
    again = tmp_path / "back-f32.gguf"
    ours, theirs = gguf_header.read(file), gguf_header.read(again)
    assert ours.tensors == theirs.tensors
    assert file.read_bytes()[ours.data_offset :] == again.read_bytes()[theirs.data_offset :]


def test_a_model_in_whose_folder_an_adapters_settings_lie_is_still_one(tmp_path, capsys):
    folder = tiny_checkpoints.write("llama", tmp_path / "model")
    (folder / "adapter_config.json").write_text("{}")
    assert run(["convert", str(folder), "--no-proof", "--out", str(tmp_path)]) == 0
    assert gguf_header.read(tmp_path / "model-f16.gguf").layers == 2


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        ([], 2, "nothing to convert is named"),
        (["no-such-folder"], 1, "no-such-folder"),
        (["SOURCE", "--level", "q99"], 2, "'q99' is not a level"),
        (["SOURCE", "--level", "q8_0,q8_0"], 2, "named twice"),
        (["SOURCE", "--level", ","], 2, "no level is named"),
        (["SOURCE", "--tensor-type", "q8_0"], 2, "is not REGEX=TYPE"),
        (["SOURCE", "--prune-layers", "x"], 2, "is no list of layers"),
        (["SOURCE", "--name", "../x"], 2, "cannot begin files' names"),
        (["SOURCE", "--prune-layers", "7"], 2, "cannot be left out of 2"),
        (["SOURCE", "--level", "q4_0", "--output-type", "q9_9"], 2, "is no tensor type"),
        (["SOURCE", "--level", "iq2_xs", "--imatrix", "x", "--calibrate", "y"], 2, "one matrix is used"),
        (["SOURCE", "--level", "q4_0", "--calibrate", "too few words"], 2, "give one of at least"),
        (["SOURCE", "--level", "q99", "--calibrate", WORDS], 2, "'q99' is not a level"),
        (["SOURCE", "--imatrix", "no-such-file"], 1, "no-such-file"),
        (["--check", "SOURCE/config.json"], 2, "--check needs --against"),
        (["SOURCE", "--to", "safetensors"], 1, "is a folder, not a GGUF file"),
        (["SOURCE", "--to", "safetensors", "--name", "../x"], 2, "cannot begin files' names"),
        (["SOURCE", "--to", "safetensors", "--dry-run"], 2, "--dry-run does not go with --to safetensors"),
        (["SOURCE", "--to", "safetensors", "--imatrix", "x"], 2, "--imatrix does not go with"),
        (["SOURCE", "--against", "SOURCE"], 2, "--against does not go with making GGUF files"),
        (["SOURCE", "--check", "x", "--against", "SOURCE"], 2, "SOURCE does not go with --check"),
        (["SOURCE", "--levels"], 2, "SOURCE does not go with --levels"),
        (["ADAPTER", "--level", ","], 2, "an adapter is written at one level"),
        (["ADAPTER", "--level", "f16,f32"], 2, "an adapter is written at one level"),
        (["ADAPTER", "--dry-run"], 2, "--dry-run does not go with a LoRA adapter"),
        (["ADAPTER", "--name", "../x", "--base", "SOURCE"], 2, "cannot begin files' names"),
        (
            ["SOURCE", "--level", "q4_0", "--calibrate", "no-such-file.txt"],
            2,
            "there is no file 'no-such-file.txt'",
        ),
        (["SOURCE", "--level", "q4_0", "--calibrate", "words " * 100], 2, "give one of at least"),
    ],
)
def test_what_cannot_be_converted_is_one_line_and_leaves_nothing(source, tmp_path, capsys, words, code, line):
    (adapter := tmp_path / "adapter").mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").touch()
    words = [word.replace("SOURCE", str(source)).replace("ADAPTER", str(adapter)) for word in words]
    assert run(["convert", *words, "--out", str(tmp_path / "out")]) == code
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@beside
def test_a_trained_checkpoint_with_entities_to_name(tmp_path, capsys):
    assert run(["convert", str(SHARED / "ner-minilm"), "--level", "f16", "--out", str(tmp_path)]) == 0
    assert "TOP-1" in capsys.readouterr().out
