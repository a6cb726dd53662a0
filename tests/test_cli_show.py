"""`edge show`: the certificate beside a file, believed only where it is one and of that file."""

from __future__ import annotations

import json
import os
import shutil

import gguf
import pytest
import tiny_checkpoints
from tiny import tiny_llama

from edge import store
from edge.cli import certificate, run

NOT_ITS = "none: beside it lies a JSON that is not its certificate"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with proven.gguf, its certificate, and unproven.gguf of the same checkpoint."""
    folder = tmp_path_factory.mktemp("made")
    source = tiny_checkpoints.write("llama", folder / "source")
    for name, proof in (("proven", []), ("unproven", ["--no-proof"])):
        assert run(["convert", str(source), "--out", str(folder), "--name", name, *proof]) == 0
        (folder / f"{name}-f16.gguf").rename(folder / f"{name}.gguf")
    (folder / "proven-f16.json").rename(folder / "proven.json")
    return folder


@pytest.fixture
def folder(made, tmp_path):
    for name in ("proven.gguf", "proven.json", "unproven.gguf"):
        shutil.copyfile(made / name, tmp_path / name)
    return tmp_path


def shown(path, capsys):
    """(label → text, the JSON document)."""
    capsys.readouterr()
    assert run(["show", str(path)]) == 0
    rows = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines() if "  " in line)
    assert run(["show", str(path), "--json"]) == 0
    return {label: text.strip() for label, text in rows.items()}, json.loads(capsys.readouterr().out)


def test_the_certificate_is_in_two_rows_and_in_the_json(folder, capsys):
    rows, facts = shown(folder / "proven.gguf", capsys)
    whole = json.loads((folder / "proven.json").read_text())
    assert facts["certificate"] == whole
    figures = whole["comparison"]
    assert rows["certificate"].startswith(f"logit error {figures['logit_error']:.2g}, hidden error ")
    assert rows["certificate"].endswith(f"top-1 agreement 100.0% over {figures['tokens']} tokens")
    assert whole["source"]["model.safetensors"][:12] in rows["made of"]
    probes = whole["tokenizer"]["probes"]
    assert (
        f"and 2 other files · tokenizer equal on {probes} of {probes} texts · edge-runtime" in rows["made of"]
    )


def test_a_file_without_one_says_why(folder, capsys):
    rows, facts = shown(folder / "unproven.gguf", capsys)
    assert (rows["certificate"], facts["certificate"]) == ("none (--no-proof)", None)
    (folder / "proven.json").unlink()
    rows, facts = shown(folder / "proven.gguf", capsys)
    assert (rows["certificate"], facts["certificate"]) == (
        "none here: proven.json is not beside the file",
        None,
    )


def test_a_file_made_elsewhere_has_no_such_row(tmp_path, capsys):
    rows, facts = shown(tiny_llama(tmp_path / "m.gguf"), capsys)
    assert "certificate" not in rows
    assert (facts["certificate"], facts["certificate_note"]) == (None, "")


def changed(**fields):
    return lambda whole: json.dumps({**whole, **fields}).encode()


def figure(**figures):
    return lambda whole: json.dumps({**whole, "comparison": {**whole["comparison"], **figures}}).encode()


BAD = {
    "empty": lambda whole: b"",
    "cut off": lambda whole: json.dumps(whole).encode()[:-9],
    "an object": lambda whole: b"{}",
    "a list": lambda whole: b"[1]",
    "no text": lambda whole: b"\xff\xfe",
    "deep": lambda whole: b"[" * 100_000,
    "many values": lambda whole: b"[" + b"0," * (1 << 20) + b"0]",
    "huge": lambda whole: json.dumps(whole).encode() + b" " * certificate.MAX_BYTES,
    "of another file": lambda whole: changed(bytes=whole["bytes"] + 1)(whole),
    "no length": changed(bytes=None),
    "a truth for a length": changed(bytes=True),
    "no comparison": changed(comparison=None),
    "words for a figure": figure(logit_error="small"),
    "not a number": figure(logit_error=float("nan")),
    "infinite": figure(kl_divergence=float("inf")),
    "a number of a thousand digits": figure(top1_agreement=10**1000),
    "no tokens": figure(tokens=None),
    "no JSON of a number elsewhere": changed(extra=float("nan")),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_its_certificate_is_not_believed(name, folder, capsys):
    path = folder / "proven.json"
    path.write_bytes(BAD[name](json.loads(path.read_text())))
    rows, facts = shown(folder / "proven.gguf", capsys)
    assert (rows["certificate"], facts["certificate"]) == (NOT_ITS, None)
    assert "made of" not in rows


@pytest.mark.parametrize("kind", ["a folder", "a pipe", "a link to nowhere"])
def test_nor_is_what_is_no_file(kind, folder, capsys):
    path = folder / "proven.json"
    path.unlink()
    if kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("nowhere")
    assert shown(folder / "proven.gguf", capsys)[0]["certificate"] == NOT_ITS


def test_of_a_kept_file_the_hash_is_known_too(folder, capsys):
    store.pull(str(folder / "proven.gguf"))
    assert shown("proven", capsys)[1]["certificate"]["level"] == "f16"
    whole = json.loads((folder / "proven.json").read_text())
    (folder / "proven.json").write_text(json.dumps({**whole, "sha256": "0" * 64}))
    assert shown("proven", capsys)[0]["certificate"] == NOT_ITS


def test_a_certificate_cannot_steer_the_terminal(folder, capsys):
    path = folder / "proven.json"
    whole = json.loads(path.read_text())
    whole["source"] = {"\x1b[2J.safetensors": "\x9b1m"}
    whole["tools"] = {"edge-runtime": "\x1b]0;owned\x07", "half a character": "\ud800"}
    whole["tokenizer"] = {"probes": "many", "differences": 3}
    path.write_text(json.dumps(whole))
    rows, facts = shown(folder / "proven.gguf", capsys)
    assert facts["certificate"] == whole
    assert rows["made of"] == r"\x1b[2J.safetensors \x9b1m… · edge-runtime \x1b]0;owned\x07"


def test_the_stores_own_record_is_no_certificate(made, home, monkeypatch, tmp_path, capsys):
    import hashlib

    from fake_hub import FakeHub

    body = (made / "unproven.gguf").read_bytes()
    with FakeHub() as hub:
        hub.files["o/r"] = {"model.gguf": body}
        url = f"{hub.url}/o/r/resolve/main/model.gguf#sha256={hashlib.sha256(body).hexdigest()}"
        assert store.pull(url, name="mine").path.with_suffix(".json").exists()
    assert shown("mine", capsys)[0]["certificate"] == "none (--no-proof)"


def test_an_adapter_is_called_one(tmp_path, capsys):
    writer = gguf.GGUFWriter(tmp_path / "style.gguf", "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    rows, facts = shown(tmp_path / "style.gguf", capsys)
    assert (rows["type"], facts["type"]) == ("adapter", "adapter")


def test_a_trained_model_says_what_it_was_made_of_and_when_damaged_to_train_again(tmp_path, home, capsys):
    pytest.importorskip("sklearn")
    from test_train import write
    from word_encoders import embedder

    data = write(tmp_path / "data.csv", {"up": 9, "down": 8})
    encoder = embedder(tmp_path / "tiny")
    assert run(["train", str(encoder), "--data", str(data), "--as", "moods"]) == 0
    rows, facts = shown("moods", capsys)
    assert rows["format"] == "trained head and its encoder"
    assert rows["labels"] == "2: down, up"
    assert rows["encoder"] == "tiny, fp32, onnxruntime-cpu"
    assert rows["trained"].startswith(facts["training"]["date"])
    assert "17 rows" in rows["trained"]
    assert rows["held out"].startswith(f"log loss {facts['training']['held_out']['nll']:.4g} nats")
    weights = home / "models/moods/head.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[:-4], whole[:-1] + b"\x7f"):
        weights.write_bytes(damaged)
        for verb in (["pull", "moods"], *([["classify", "moods", "a"]] if damaged == whole[:-4] else [])):
            assert run(verb) == 3
            said = capsys.readouterr().err
            assert "train it again, on tiny" in said
            assert "edge pull" not in said


def test_an_onnx_decoder_says_its_sizes_like_a_gguf(tmp_path, capsys):
    source = tiny_checkpoints.write("llama", tmp_path / "source")
    made = [
        "convert",
        str(source),
        "--to",
        "onnx",
        "--level",
        "fp32",
        "--name",
        "tiny",
        "--out",
        str(tmp_path),
    ]
    assert run(made) == 0
    rows, facts = shown(tmp_path / "tiny-fp32", capsys)
    config = json.loads((source / "config.json").read_text())
    assert (rows["task"], rows["layers"]) == ("generation", str(config["num_hidden_layers"]))
    assert facts["context"] == config["max_position_embeddings"]
    assert facts["kv_heads"] == [config["num_key_value_heads"]]
    assert rows["chat template"].startswith(("yes", "no"))
    assert "reads" not in rows
