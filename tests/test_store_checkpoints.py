"""Whole checkpoints by reference: from a hub of our own, from wheels, from the Hugging Face cache; then converted."""

from __future__ import annotations

import hashlib
import json
import os
import sys

import numpy as np
import pytest
import tiny_checkpoints
from fake_hub import COMMIT, FakeHub, drop, gguf, instead, point_at
from test_lora import adapter
from test_store_wheels import wheel

from edge import store
from edge.cli import run
from edge.convert.safetensors import Writer
from edge.errors import DownloadError, EdgeError, HashMismatch, ModelNotFound, RequestError, UnsafeFile
from edge.gguf_header import read
from edge.store import checkpoints, download
from edge.store import hub as hub_module
from edge.store.checkpoints import INDEX
from edge.store.refs import parse

SHARDS = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
PICKLES = {
    "pytorch_model.bin": b"\x80\x02",
    "training_args.bin": b"PK\x03\x04",
    "modeling.py": b"raise SystemExit",
}
PAIR = ["config.json", "model.safetensors"]
EMPTY = (2).to_bytes(8, "little") + b"{}"  # a safetensors file without tensors


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    return tiny_checkpoints.write("llama", tmp_path_factory.mktemp("source") / "tiny-llama")


@pytest.fixture(scope="module")
def whole(local):
    """The same as a repository in one piece: path → bytes."""
    return {path.name: path.read_bytes() for path in local.iterdir()}


@pytest.fixture(scope="module")
def sharded(whole, tmp_path_factory):
    """The same in three shards with an index, and what else lies in a real repository."""
    folder = tmp_path_factory.mktemp("shards")
    tensors, places = list(tiny_checkpoints.weights("llama").items()), {}
    for n, shard in enumerate(SHARDS):
        part = tensors[n::3]
        with Writer(folder / shard, [(name, "F32", array.shape) for name, array in part]) as writer:
            for name, array in part:
                writer.write(name, np.ascontiguousarray(array))
                places[name] = shard
    files = {name: body for name, body in whole.items() if name != "model.safetensors"}
    files |= {shard: (folder / shard).read_bytes() for shard in SHARDS}
    index = json.dumps({"metadata": {}, "weight_map": places}).encode()
    return (
        files
        | PICKLES
        | {INDEX: index, "README.md": b"# tiny", "1_Pooling/config.json": b"{}", "onnx/model.onnx": b"x"}
    )


@pytest.fixture
def hub(monkeypatch, tmp_path, sharded):
    monkeypatch.setattr(download, "PAUSE", 0.01)
    with FakeHub() as hub:
        point_at(hub, monkeypatch, tmp_path / "hf" / "hub")
        hub.files["o/Tiny-Llama"] = dict(sharded)
        hub.small = {name for name in sharded if not name.endswith((".safetensors", ".bin"))}
        yield hub


REF = "hf:o/Tiny-Llama"


def fetched(hub):
    """The files whose bytes were asked for, the index counted once."""
    return {
        path.partition("/resolve/")[2].partition("/")[2] for _, path, _ in hub.requests if "/resolve/" in path
    }


def said(args, capsys, code=0):
    capsys.readouterr()
    assert run(args) == code
    out, err = capsys.readouterr()
    return err.splitlines()[-1] if code else out


def test_a_sharded_checkpoint_is_one_model(hub, home, sharded, capsys):
    model = store.pull(REF)
    wanted = {"config.json", "tokenizer.json", "1_Pooling/config.json", INDEX, *SHARDS}
    assert fetched(hub) == wanted
    assert model.path == home / "models" / "tiny-llama"
    assert {path.relative_to(model.path).as_posix() for path in model.files} == wanted
    assert all(path.read_bytes() == sharded[path.relative_to(model.path).as_posix()] for path in model.files)
    assert (model.name, model.ref, model.licence, model.in_place) == ("tiny-llama", REF, "mit", False)
    checked = {file.path.name: (file.checked, file.source) for file in model.evidence}
    assert checked[SHARDS[1]] == ("sha256 from the hub", f"{REF}/{SHARDS[1]}@{COMMIT}")
    assert checked["tokenizer.json"][0] == checked[INDEX][0] == "git sha1 from the hub"
    assert store.resolve(REF) == store.resolve("tiny-llama") == model
    seen = len(hub.requests)
    assert store.pull(REF) == model
    assert len(hub.requests) == seen

    assert "tiny-llama" in said(["list"], capsys)
    shown = said(["show", REF], capsys)
    assert "safetensors checkpoint" in shown
    assert "LlamaForCausalLM" in shown
    assert "1_Pooling/config.json" in shown
    assert "model.json" not in shown
    assert "whole" in said(["verify", "tiny-llama"], capsys)
    data = bytearray(model.files[-1].read_bytes())
    data[-1] ^= 1
    model.files[-1].write_bytes(data)
    assert "damaged: tiny-llama" in said(["verify", REF], capsys, code=3)
    hub.requests.clear()
    store.pull(REF)
    assert SHARDS[0] not in fetched(hub)
    assert store.verify(REF).ok
    assert "removed tiny-llama" in said(["rm", REF], capsys)
    assert not model.path.exists()


def test_it_converts_like_the_folder_it_was(hub, home, local, tmp_path, capsys):
    args = ["--level", "f16", "--name", "m", "--out"]
    err = said(["convert", REF, *args, str(tmp_path / "a")], capsys, code=1)
    assert err == f"edge: {REF} is not on this disk; run `edge pull {REF}`"
    assert hub.requests == []
    store.pull(REF)
    said(["convert", REF, *args, str(tmp_path / "a")], capsys)
    said(["convert", "tiny-llama", *args, str(tmp_path / "b")], capsys)
    said(["convert", str(local), *args, str(tmp_path / "c")], capsys)
    made = [(tmp_path / folder / "m-f16.gguf").read_bytes() for folder in "abc"]
    assert made[0] == made[1] == made[2]
    certificate = json.loads((tmp_path / "a" / "m-f16.json").read_text())
    assert set(certificate["source"]) >= {INDEX, *SHARDS}


def test_a_chat_says_to_convert_it_first(hub, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", None)
    store.pull(REF)
    assert said(["chat", REF, "--", "Hello"], capsys, code=2) == (
        "edge: tiny-llama is not a GGUF file but a checkpoint; run `edge convert tiny-llama`, "
        "then give this command the file that it writes; "
        "`edge plan --all tiny-llama` compares what it could be made into"
    )


def test_a_terminal_offers_to_pull_what_is_to_be_converted(hub, home, tmp_path):
    pexpect = pytest.importorskip("pexpect", reason="needs pexpect for a pseudo-terminal")
    words = ["-m", "edge", "convert", REF, "--no-proof", "--out", str(tmp_path / "out")]
    environment = {**os.environ, "TERM": "xterm", "HF_ENDPOINT": hub.url}
    child = pexpect.spawn(sys.executable, words, env=environment, encoding="utf-8")
    child.expect("Pull it now")
    child.sendline("y")
    child.expect("tiny-llama-f16.gguf")
    child.expect(pexpect.EOF, timeout=60)
    child.close()
    assert child.exitstatus == 0
    assert (tmp_path / "out" / "tiny-llama-f16.gguf").exists()


def test_a_revision_is_asked_for_and_pinned(hub):
    model = store.pull(f"{REF}@refs/pr/1")
    asked = [path for _, path, _ in hub.requests if path.startswith("/api/")]
    assert asked == ["/api/models/o/Tiny-Llama/revision/refs/pr/1"]
    assert all(f"/resolve/{COMMIT}/" in path for _, path, _ in hub.requests if "/resolve/" in path)
    assert store.resolve(f"{REF}@refs/pr/1") == model
    with pytest.raises(ModelNotFound):
        store.resolve(REF)


@pytest.mark.parametrize(
    ("shard", "says"),
    [
        ("../x.safetensors", "not a plain safetensors file"),
        ("/etc/x.safetensors", "not a plain safetensors file"),
        ("sub/x.safetensors", "not a plain safetensors file"),
        (".x.safetensors", "not a plain safetensors file"),
        ("a\x00b.safetensors", "not a plain safetensors file"),
        ("tokenizer.json", "not a plain safetensors file"),
        ("pytorch_model.bin", "a pickle"),
        (7, "not a plain safetensors file"),
        ("model-00004-of-00004.safetensors", "is missing"),
    ],
)
def test_an_index_that_leads_astray_is_refused_before_anything_is_fetched(shard, says, hub, home):
    hub.files["o/Tiny-Llama"][INDEX] = json.dumps({"weight_map": {"a": SHARDS[0], "b": shard}}).encode()
    if isinstance(shard, str):
        hub.files["o/Tiny-Llama"].setdefault(shard, EMPTY)
    if says == "is missing":
        del hub.files["o/Tiny-Llama"][shard]
    with pytest.raises(UnsafeFile, match=says) as error:
        store.pull(REF)
    assert error.value.line.isprintable()
    assert fetched(hub) == {INDEX}
    assert not list(home.rglob("*.safetensors*"))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b'{"weight_map": []}',
        b'{"weight_map": {}}',
        b"\xff",
        b"[" * 99_999,
        b"[" + b"0," * (1 << 20),
    ],
)
def test_what_is_no_index(text, hub):
    hub.files["o/Tiny-Llama"][INDEX] = text
    with pytest.raises(EdgeError, match="index") as error:
        store.pull(REF)
    assert error.value.exit_code == 3
    assert fetched(hub) == {INDEX}


def test_an_index_of_any_length_is_not_fetched(hub, monkeypatch):
    monkeypatch.setattr(checkpoints, "MAX_INDEX", 100)
    with pytest.raises(UnsafeFile, match="100 is the limit"):
        store.pull(REF)
    assert fetched(hub) == set()


def test_only_pickles(hub, home):
    hub.files["o/Tiny-Llama"] = {"config.json": b"{}", "tokenizer.json": b"{}", **PICKLES}
    for ref in (REF, f"{REF}:safetensors"):
        with pytest.raises(UnsafeFile, match=r"only as pickles \(pytorch_model.bin\)") as error:
            store.pull(ref)
        assert ".safetensors" in error.value.hint
    assert fetched(hub) == set()
    assert store.models() == ()


@pytest.mark.parametrize(
    ("names", "ref", "chosen"),
    [
        ([*PAIR, "m-Q8_0.gguf"], "hf:o/r", []),  # the GGUF file, as it runs
        ([*PAIR, "m-Q8_0.gguf"], "hf:o/r:SafeTensors", PAIR),
        ([*PAIR, INDEX], "hf:o/r", PAIR),
        ([*PAIR, "mmproj.gguf"], "hf:o/r", PAIR),
        (PAIR, "hf:o/r/model.safetensors", []),
        (PAIR, "hf:o/r:Q8_0", []),
        (
            ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "tokenizer.json"],
            "hf:o/r",
            ["adapter_config.json", "adapter_model.safetensors"],
        ),
    ],
)
def test_which_files_are_meant(names, ref, chosen):
    assert hub_module.checkpoint(names, parse(ref), lambda: b"") == chosen


def test_a_repository_with_both_kinds(hub, whole):
    hub.files["o/r"] = {**whole, "m-Q8_0.gguf": gguf(900), "m-Q5_0.gguf": gguf(800)}
    with pytest.raises(RequestError, match="could be 2 files") as error:
        store.pull("hf:o/r")
    assert error.value.hint.endswith("hf:o/r:safetensors is its checkpoint")
    del hub.files["o/r"]["m-Q5_0.gguf"]
    assert store.pull("hf:o/r").path.name == "m-Q8_0.gguf"
    model = store.pull("hf:o/r:safetensors")
    assert (model.name, model.ref) == ("r", "hf:o/r:safetensors")
    assert sorted(path.name for path in model.files) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_neither(hub):
    hub.files["o/r"] = {"README.md": b"#", "weights.safetensors": EMPTY}
    with pytest.raises(ModelNotFound, match="no GGUF file and has no checkpoint"):
        store.pull("hf:o/r")


def test_an_adapter(hub, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", None)
    parts = {"adapter_config.json": b'{"peft_type": "LORA"}', "adapter_model.safetensors": EMPTY}
    hub.files["o/my-lora"] = {**parts, "adapter_model.bin": b"\x80\x02", "tokenizer.json": b"{}"}
    model = store.pull("hf:o/my-lora")
    assert (model.name, {path.name for path in model.files}) == ("my-lora", set(parts))
    assert model.path.is_dir()
    assert "LoRA adapter" in said(["show", "my-lora"], capsys)
    assert "a LoRA adapter; run `edge convert my-lora`" in said(
        ["chat", "my-lora", "--", "Hi"], capsys, code=2
    )
    assert store.resolve(str(model.path)).path == model.path  # and so as a path


def test_an_adapter_in_the_cache_converts(hub, local, tmp_path, capsys):
    raw = json.loads((local / "config.json").read_text())
    adapter(tmp_path / "lora", raw)
    files = {path.name: path.read_bytes() for path in (tmp_path / "lora").iterdir()}
    cache(tmp_path, files, "models--o--my-lora")
    said(["convert", "hf:o/my-lora", "--base", str(local), "--out", str(tmp_path / "new")], capsys)
    assert read(tmp_path / "new" / "my-lora-lora-f16.gguf").metadata["general.name"] == "my-lora"


def test_an_interruption_goes_on_where_it_was(hub, home, sharded, monkeypatch):
    monkeypatch.setattr(download, "TRIES", 1)
    after = drop(100_000)
    hub.fault = lambda handler, body: body == sharded[SHARDS[2]] and after(handler, body)
    with pytest.raises(DownloadError):
        store.pull(REF)
    folder = home / "models" / "tiny-llama"
    assert store.models() == ()
    assert (folder / SHARDS[1]).exists()
    kept = (folder / f"{SHARDS[2]}.partial").stat().st_size
    assert kept > 0
    with pytest.raises(ModelNotFound):
        store.resolve(REF)
    hub.fault = None
    hub.requests.clear()
    assert store.pull(REF).path == folder
    assert not set(SHARDS[:2]) & fetched(hub)
    assert [headers["Range"] for headers in hub.gets() if "Range" in headers] == [f"bytes={kept}-"]
    assert not list(folder.glob("*.partial*"))
    assert store.verify(REF).ok


def test_what_another_commit_left_goes(hub, home, sharded, whole, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(download, "TRIES", 1)
    after = drop(100_000)
    hub.fault = lambda handler, body: body == sharded[SHARDS[2]] and after(handler, body)
    with pytest.raises(DownloadError):
        store.pull(REF)
    hub.fault = None
    hub.files["o/Tiny-Llama"] = whole
    model = store.pull(REF)
    assert {path.name for path in model.path.iterdir() if path.is_file()} == {*whole, "model.json"}
    said(["convert", REF, "--out", str(tmp_path)], capsys)


@pytest.mark.parametrize("name", ["config.json", SHARDS[1]])
def test_other_bytes_than_promised(name, hub, sharded):
    other = instead(sharded[name][:-1] + b"\x7f")
    hub.fault = lambda handler, body: body == sharded[name] and other(handler, body)
    with pytest.raises(HashMismatch, match=name):
        store.pull(REF)
    assert store.models() == ()
    hub.fault = None
    store.pull(REF)
    assert store.verify(REF).ok


def cache(tmp_path, files, repo="models--o--Tiny-Llama"):
    """Those files in the Hugging Face cache's documented layout: its snapshot folder."""
    root = tmp_path / "hf" / "hub" / repo
    snapshot = root / "snapshots" / COMMIT
    for folder in (root / "blobs", snapshot, root / "refs"):
        folder.mkdir(parents=True)
    for name, body in files.items():
        git = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
        blob = root / "blobs" / (hashlib.sha256(body).hexdigest() if name.endswith(".safetensors") else git)
        blob.write_bytes(body)
        (snapshot / name).parent.mkdir(exist_ok=True)
        (snapshot / name).symlink_to(blob)
    (root / "refs" / "main").write_text(COMMIT)
    return snapshot


def test_a_cached_checkpoint_is_used_where_it_is(hub, sharded, tmp_path, monkeypatch, capsys):
    snapshot = cache(tmp_path, sharded)
    model = store.resolve(REF)
    assert (model.path, model.name, model.in_place) == (snapshot, "tiny-llama", True)
    assert not [path for path in model.files if path.suffix in (".bin", ".py", ".md")]
    said(["convert", REF, "--out", str(tmp_path / "out")], capsys)
    assert (tmp_path / "out" / "Tiny-Llama-f16.gguf").exists()
    assert hub.requests == []
    assert store.pull(REF).path == snapshot  # the hub is asked what belongs to it
    assert fetched(hub) == {INDEX}
    assert {file.checked for file in store.resolve(REF).evidence} == {"hash from the Hugging Face cache"}
    assert "stays where it is" in said(["rm", REF], capsys)
    assert (snapshot / SHARDS[0]).read_bytes() == sharded[SHARDS[0]]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert store.pull(REF).path == snapshot


@pytest.mark.parametrize("lacking", [SHARDS[2], "tokenizer.json", "config.json", INDEX])
def test_a_cache_with_a_part_of_it_does_not_do(lacking, hub, sharded, tmp_path):
    cache(tmp_path, {name: body for name, body in sharded.items() if name != lacking})
    with pytest.raises(ModelNotFound, match="not on this disk"):
        store.resolve(REF)
    assert store.pull(REF).in_place is False
    assert store.verify(REF).ok


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that the user's pip configuration points at."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return tmp_path / "wheels"


def test_a_folder_in_a_wheel(index, home, sharded, tmp_path, capsys):
    wheel(index, "tiny_model", {f"tiny_model/model/{name}": body for name, body in sharded.items()})
    ref = "pypi:tiny-model==1.0#tiny_model/model"
    model = store.pull(ref)
    assert (model.name, model.path, model.licence) == ("tiny-model", home / "models" / "tiny-model", "MIT")
    names = {path.relative_to(model.path).as_posix() for path in model.files}
    assert names == {"config.json", "tokenizer.json", "1_Pooling/config.json", INDEX, *SHARDS}
    assert {file.checked for file in model.evidence} == {"sha256 from the wheel's own list"}
    assert model.evidence[0].source == f"{ref}/config.json"
    assert store.resolve(ref) == model
    said(["convert", ref, "--out", str(tmp_path)], capsys)
    assert (tmp_path / "tiny-model-f16.gguf").exists()
    (model.path / "config.json").unlink()
    assert store.pull(ref) == store.resolve(ref)
    assert store.verify(ref).ok


@pytest.mark.parametrize(
    ("members", "error", "says"),
    [
        ({"config.json": b"{}", "pytorch_model.bin": b"\x80\x02"}, UnsafeFile, "only as pickles"),
        ({"README.md": b"#"}, ModelNotFound, "has no checkpoint"),
        ({}, ModelNotFound, "has no tiny_model/model"),
        (
            {
                "config.json": b"{}",
                INDEX: b'{"weight_map": {"a": "../x.safetensors"}}',
                "../x.safetensors": EMPTY,
            },
            UnsafeFile,
            "plain safetensors file",
        ),
    ],
)
def test_a_folder_in_a_wheel_that_will_not_do(members, error, says, index, home):
    files = {f"tiny_model/model/{name}": body for name, body in members.items()}
    wheel(index, "tiny_model", {**files, "tiny_model/__init__.py": b"raise SystemExit(9)"})
    with pytest.raises(error, match=says):
        store.pull("pypi:tiny-model==1.0#tiny_model/model")
    assert not list((home / "models").glob("[!.]*"))
