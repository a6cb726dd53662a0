"""resolve, pull, models, remove and verify on files of this disk."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys

import pytest
from fake_hub import gguf

from edge import store
from edge.errors import HashMismatch, ModelNotFound, Offline, RequestError, StoreError, UnsafeFile


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "My Model.Q8_0.gguf"
    path.write_bytes(gguf(100_000))
    return path


def test_importing_the_store_loads_no_client():
    clients = ("huggingface_hub", "httpx2", "rich", "filelock")
    code = f"import sys, edge.store; print([name for name in {clients} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_a_local_file_is_recorded_and_not_copied(mine, home):
    model = store.pull(str(mine))
    assert model == store.resolve("my-model.q8_0") == store.resolve(str(mine)) == store.models()[0]
    assert (model.path, model.files, model.in_place) == (mine, (mine,), True)
    assert model.sha256 == hashlib.sha256(mine.read_bytes()).hexdigest()
    assert [path.name for path in (home / "models" / model.name).iterdir()] == ["model.json"]


def test_a_local_path_needs_no_pull(mine):
    model = store.resolve(str(mine))
    assert (model.path, model.sha256, model.bytes) == (mine, "", 100_000)
    assert store.models() == ()


def test_a_path_that_is_not_there_says_so(tmp_path):
    for call in (store.resolve, store.pull):
        with pytest.raises(ModelNotFound, match="there is no file"):
            call(str(tmp_path / "gone.gguf"))


def test_what_to_run_is_said(mine):
    with pytest.raises(ModelNotFound) as error:
        store.resolve(store.DEFAULT)
    assert error.value.hint == "run `edge pull smollm2-135m-instruct`"
    with pytest.raises(ModelNotFound) as error:
        store.resolve("SmolLM-135M-Instruct")
    assert error.value.hint == "did you mean smollm2-135m-instruct? run `edge pull smollm2-135m-instruct`"
    store.pull(str(mine), name="assistant")
    with pytest.raises(ModelNotFound) as error:
        store.resolve("asistant")
    assert error.value.hint == "did you mean assistant?"
    with pytest.raises(ModelNotFound) as error:
        store.resolve("zzzzzzzz")
    assert "edge list" in error.value.hint
    with pytest.raises(ModelNotFound) as error:
        store.resolve("hf:owner/repo:Q4_K_M")
    assert error.value.hint == "run `edge pull hf:owner/repo:Q4_K_M`"


def test_a_file_in_the_working_folder_by_its_bare_name(mine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine.rename("word")
    assert store.resolve("word").path == tmp_path / "word"


@pytest.mark.parametrize("name", ["..", "../x", "A", "-x", "a/b", "a b", "", "a" * 97, ".hidden"])
def test_a_name_is_not_a_path(mine, name):
    with pytest.raises(RequestError):
        store.pull(str(mine), name=name)


def test_a_name_belongs_to_one_reference(mine, tmp_path):
    store.pull(str(mine), name="one")
    other = tmp_path / "other.gguf"
    other.write_bytes(gguf(64))
    with pytest.raises(RequestError, match="kept already") as error:
        store.pull(str(other), name="one")
    assert "--as" in error.value.hint
    assert store.pull(str(mine), name="one").path == mine


def test_verify_finds_a_flipped_bit(mine):
    store.pull(str(mine), name="m")
    assert store.verify("m").ok
    data = bytearray(mine.read_bytes())
    data[70_000] ^= 1
    mine.write_bytes(data)
    check = store.verify("m")
    assert not check.ok
    assert hashlib.sha256(data).hexdigest() in check.problems[0]
    mine.unlink()
    assert "missing" in store.verify("m").problems[0]


def test_a_changed_length_is_seen_before_use_and_pulled_again(mine):
    store.pull(str(mine), name="m")
    mine.write_bytes(gguf(50))
    with pytest.raises(HashMismatch) as error:
        store.resolve("m")
    assert error.value.hint == f"run `edge pull '{mine}'`"
    store.pull("m")
    assert store.resolve("m").bytes == 50
    mine.unlink()
    with pytest.raises(ModelNotFound, match="has lost"):
        store.resolve("m")


def test_verify_needs_a_recorded_hash(mine):
    with pytest.raises(RequestError, match="never pulled"):
        store.verify(str(mine))


def test_remove_leaves_what_is_not_the_stores(mine, home):
    model = store.pull(str(mine), name="m")
    assert store.remove("m") == model
    assert mine.exists()
    assert not (home / "models" / "m").exists()
    with pytest.raises(ModelNotFound):
        store.remove("m")


def test_remove_follows_no_link(tmp_path, home):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "model.json").write_text("{")
    (home / "models").mkdir(parents=True)
    (home / "models" / "m").symlink_to(outside)
    with pytest.raises(StoreError, match="link"):
        store.remove("m")
    assert (outside / "model.json").exists()


def test_remove_clears_an_abandoned_pull(home):
    folder = home / "models" / "half"
    folder.mkdir(parents=True)
    (folder / "m.gguf.partial").write_bytes(b"x" * 10)
    assert store.models() == ()
    assert store.remove("half").bytes == 10
    assert not folder.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "m"}', "null"])
def test_a_damaged_record_is_named_and_can_be_removed(mine, home, text):
    store.pull(str(mine), name="m")
    (home / "models" / "m" / "model.json").write_text(text)
    with pytest.raises(StoreError, match="damaged") as error:
        store.models()
    assert "edge rm m" in error.value.hint
    store.remove("m")
    assert store.models() == ()


def test_a_damaged_record_is_no_matter_for_another_model(mine, home, tmp_path):
    other = tmp_path / "other.gguf"
    other.write_bytes(gguf(1000))
    store.pull(str(mine), name="m")
    (home / "models" / "m" / "model.json").write_text("{")
    assert store.resolve(str(other)).path == other
    assert store.resolve(store.pull(str(other)).name).path == other
    with pytest.raises(ModelNotFound):
        store.resolve("nothing")
    for call in (store.models, lambda: store.verify("m"), lambda: store.resolve("m")):
        with pytest.raises(StoreError, match="damaged"):
            call()


def test_a_model_folder_may_be_renamed_by_hand(mine, home):
    store.pull(str(mine), name="m")
    (home / "models" / "m").rename(home / "models" / "n")
    assert store.resolve("n").name == "n"
    assert store.remove("n").name == "n"
    assert store.models() == ()


def test_a_file_that_may_not_be_read(mine):
    if os.geteuid() == 0:
        pytest.skip("root may read anything")
    mine.chmod(0)
    with pytest.raises(StoreError, match="Permission denied") as error:
        store.pull(str(mine))
    assert error.value.hint == "check that you may read it"


def test_a_record_cannot_lead_out_of_the_store(mine, home):
    store.pull(str(mine), name="m")
    record = home / "models" / "m" / "model.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"in_place": False}))
    with pytest.raises(StoreError, match="leaves the store"):
        store.resolve("m")


@pytest.mark.parametrize("path", ["../../../elsewhere.gguf", "/elsewhere.gguf"])
def test_nor_can_its_first_path(mine, home, path):
    store.pull(str(mine), name="m")
    record = home / "models" / "m" / "model.json"
    fields = json.loads(record.read_text()) | {"in_place": False, "path": "m.gguf"}
    fields["evidence"][0]["path"] = "m.gguf"
    mine.rename(record.with_name("m.gguf"))
    record.write_text(json.dumps(fields))
    assert store.verify("m").ok
    record.write_text(json.dumps(fields | {"path": path}))
    with pytest.raises(StoreError, match="leaves the store"):
        store.resolve("m")


def test_a_split_file_is_all_of_its_parts(tmp_path):
    parts = [tmp_path / f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    for n, part in enumerate(parts):
        part.write_bytes(gguf(1000, n))
    for named in parts:
        model = store.resolve(str(named))
        assert (model.path, model.files, model.bytes) == (parts[0], tuple(parts), 3000)
    assert store.pull(str(parts[0])).files == tuple(parts)
    parts[1].unlink()
    with pytest.raises(UnsafeFile, match="2 of its 3 parts"):
        store.resolve(str(parts[2]))


def test_a_checkpoint_folder_leaves_pickles_out(tmp_path):
    folder = tmp_path / "ckpt"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "1_Pooling" / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02")
    model = store.pull(str(folder))
    assert model.path == folder
    assert sorted(path.name for path in model.files) == ["config.json", "config.json", "model.safetensors"]
    store.remove("ckpt")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UnsafeFile, match=r"only as pickles \(pytorch_model.bin\)") as error:
        store.resolve(str(folder))
    assert "safetensors" in error.value.hint
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(RequestError, match=r"neither \.safetensors nor \.onnx"):
        store.resolve(str(folder))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.gguf", b"<!DOCTYPE html><html>", "web page"),
        ("a.gguf", b"\n <HTML>", "web page"),
        ("a.gguf", b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS pointer"),
        ("a.gguf", b"\x80\x02}q\0", "pickle"),
        ("a.onnx", b"PK\x03\x04....", "archive"),
        ("a.gguf", b"", "not a GGUF"),
        ("a.gguf", b"FUGG....", "not a GGUF"),
        ("a.safetensors", b"12345678[", "not a safetensors"),
    ],
)
def test_what_is_not_a_model_is_not_kept(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnsafeFile, match=says) as error:
        store.pull(str(tmp_path / name))
    assert error.value.exit_code == 3
    assert store.models() == ()


def test_progress_counts_bytes(mine):
    steps = []
    store.pull(str(mine), progress=steps.append)
    assert steps[-1] == store.Progress("check", mine.name, 100_000, 100_000)


@pytest.mark.parametrize("switch", ["EDGE_OFFLINE", "HF_HUB_OFFLINE"])
@pytest.mark.parametrize(
    "ref", [store.DEFAULT, "hf:owner/repo", "pypi:p==1#m.gguf", "https://h.org/m.gguf#sha256=" + "a" * 64]
)
def test_offline_opens_no_socket(ref, switch, monkeypatch):
    import socket

    def no_socket(*_, **__):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", no_socket)
    monkeypatch.setattr(subprocess, "run", no_socket)
    monkeypatch.setenv(switch, "1")
    with pytest.raises(Offline, match=switch) as error:
        store.pull(ref)
    assert f"once online, run `edge pull {shlex.quote(ref)}`" == error.value.hint


def test_offline_is_no_matter_for_what_is_here(mine, monkeypatch):
    monkeypatch.setenv("EDGE_OFFLINE", "1")
    store.pull(str(mine), name="m")
    assert store.pull("m") == store.resolve("m")


def test_where_the_store_is(monkeypatch, tmp_path):
    from edge.store import home

    monkeypatch.setenv("EDGE_HOME", str(tmp_path / "elsewhere"))
    assert home.models_folder() == tmp_path / "elsewhere" / "models"
    monkeypatch.delenv("EDGE_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    if sys.platform == "linux":
        assert home.models_folder() == tmp_path / "data" / "edge" / "models"
    assert os.fspath(home.models_folder()).endswith("models")
