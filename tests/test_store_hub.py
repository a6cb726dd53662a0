"""Hugging Face references: which file is meant, how it comes here, and its cache."""

from __future__ import annotations

import hashlib

import pytest
from fake_hub import COMMIT, FakeHub, gguf, point_at, redirect

from edge import store
from edge.errors import HashMismatch, ModelNotFound, RequestError, UnsafeFile
from edge.store import hub as hub_module
from edge.store.refs import parse

BODY = gguf(300_000)
SPLIT = {f"Q8_0/big-Q8_0-0000{n}-of-00003.gguf": gguf(50_000, n) for n in (1, 2, 3)}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with FakeHub() as hub:
        point_at(hub, monkeypatch, tmp_path / "hf" / "hub")
        yield hub


@pytest.mark.parametrize(
    ("ref", "chosen"),
    [
        ("hf:o/r", ["m-Q4_K_M.gguf"]),
        ("hf:o/r:q8_0", ["m-Q8_0.gguf"]),
        ("hf:o/r:Q4_K", ["m.Q4_K.gguf"]),
        ("hf:o/r:f16", ["m-f16-00001-of-00002.gguf", "m-f16-00002-of-00002.gguf"]),
        ("hf:o/r/m-f16-00002-of-00002.gguf", ["m-f16-00001-of-00002.gguf", "m-f16-00002-of-00002.gguf"]),
        ("hf:o/r/README.md", ["README.md"]),
    ],
)
def test_which_file_is_meant(ref, chosen):
    names = ["README.md", "m-Q4_K_M.gguf", "m-Q8_0.gguf", "m.Q4_K.gguf", "mmproj-Q8_0.gguf"]
    names += ["m-f16-00002-of-00002.gguf", "m-f16-00001-of-00002.gguf"]
    assert hub_module.choose(names, parse(ref)) == chosen


def test_the_only_gguf_needs_no_name():
    assert hub_module.choose(["config.json", "m-IQ2_XS.gguf"], parse("hf:o/r")) == ["m-IQ2_XS.gguf"]


@pytest.mark.parametrize(
    ("names", "ref", "error", "says"),
    [
        (["a-Q8_0.gguf", "b-Q5_0.gguf"], "hf:o/r", RequestError, "hf:o/r/a-Q8_0.gguf, hf:o/r/b-Q5_0.gguf"),
        (["a-Q4_K_M.gguf", "b-Q4_K_M.gguf"], "hf:o/r:Q4_K_M", RequestError, "could be 2 files"),
        (["a-Q8_0.gguf"], "hf:o/r:Q4_0", ModelNotFound, "tagged Q4_0; choose one of hf:o/r/a-Q8_0.gguf"),
        (["a-Q8_0.gguf"], "hf:o/r/x.gguf", ModelNotFound, "has no x.gguf; choose one of"),
        (["model.safetensors"], "hf:o/r", ModelNotFound, "no GGUF"),
        (["a-Q8_0-00002-of-00002.gguf"], "hf:o/r", UnsafeFile, "1 of its 2 parts"),
    ],
)
def test_no_guessing(names, ref, error, says):
    with pytest.raises(error) as raised:
        hub_module.choose(names, parse(ref))
    assert says in raised.value.line


def test_a_pull_checks_and_keeps(hub, home):
    hub.files["o/r"] = {"sub/M-Q4_K_M.gguf": BODY, "M-Q8_0.gguf": gguf(10)}
    steps = []
    model = store.pull("hf:o/r", progress=steps.append)
    assert model.path == home / "models" / "m-q4_k_m" / "M-Q4_K_M.gguf"
    assert model.path.read_bytes() == BODY
    assert (model.ref, model.licence, model.bytes, model.in_place) == ("hf:o/r", "mit", 300_000, False)
    assert model.sha256 == hashlib.sha256(BODY).hexdigest()
    assert model.evidence[0].checked == "sha256 from the hub"
    assert model.evidence[0].source == f"hf:o/r/sub/M-Q4_K_M.gguf@{COMMIT}"
    assert steps[-1] == store.Progress("fetch", "M-Q4_K_M.gguf", 300_000, 300_000)
    assert sorted(path.name for path in model.path.parent.iterdir()) == ["M-Q4_K_M.gguf", "model.json"]
    assert store.resolve("hf:o/r") == store.resolve("m-q4_k_m") == model
    assert store.remove("hf:o/r") == model
    assert not model.path.exists()


def test_a_second_pull_only_checks(hub):
    hub.files["o/r"] = {"m.gguf": BODY}
    model = store.pull("hf:o/r")
    seen = len(hub.requests)
    assert store.pull("hf:o/r") == model
    assert len(hub.requests) == seen


def test_a_damaged_file_is_brought_again(hub):
    hub.files["o/r"] = SPLIT
    model = store.pull("hf:o/r:Q8_0")
    data = bytearray(model.files[1].read_bytes())
    data[40_000] ^= 4
    model.files[1].write_bytes(data)
    hub.requests.clear()
    again = store.pull(model.name)
    assert len(hub.gets()) == 1
    assert store.verify(again.name).ok
    assert [path.read_bytes() for path in again.files] == list(SPLIT.values())


def test_all_parts_of_a_split_file_come(hub, home):
    hub.files["o/r"] = SPLIT
    model = store.pull("hf:o/r:q8_0")
    assert model.name == "big-q8_0"
    assert model.path.name == "big-Q8_0-00001-of-00003.gguf"
    assert [path.read_bytes() for path in model.files] == list(SPLIT.values())
    assert model.bytes == 150_000
    assert store.verify("big-q8_0").ok


def test_a_file_outside_of_lfs_is_held_to_gits_hash(hub, monkeypatch):
    hub.files["o/r"] = {"tiny.gguf": gguf(2_000)}
    hub.small = {"tiny.gguf"}
    assert store.pull("hf:o/r").evidence[0].checked == "git sha1 from the hub"
    store.remove("tiny")

    def other_bytes(handler, body):
        handler.answer(200, gguf(2_000, seed=9))
        return True

    hub.fault = other_bytes
    with pytest.raises(HashMismatch, match="git blob"):
        store.pull("hf:o/r")
    assert store.models() == ()


def test_a_listing_cannot_lead_out(hub, tmp_path):
    hub.files["o/r"] = {"../../evil-Q4_K_M.gguf": BODY}
    with pytest.raises(RequestError, match="path that cannot be used"):
        store.pull("hf:o/r")
    assert not list(tmp_path.rglob("*evil*"))


def test_the_token_goes_to_the_hub_alone(hub, monkeypatch):
    hub.files["o/r"] = {"m.gguf": BODY}
    hub.hidden = {"o/r"}
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with FakeHub() as elsewhere:
        elsewhere.files["o/r"] = hub.files["o/r"]
        hub.fault = redirect(elsewhere.url)
        assert store.pull("hf:o/r").path.read_bytes() == BODY
        assert hub.gets()[0]["Authorization"] == "Bearer hf_secret"
        assert len(elsewhere.gets()) == 1
        assert all("Authorization" not in headers for _, _, headers in elsewhere.requests)


@pytest.fixture
def cache(tmp_path):
    """The Hugging Face cache's documented layout, with one file in it."""
    repo = tmp_path / "hf" / "hub" / "models--o--r"
    blob = repo / "blobs" / hashlib.sha256(BODY).hexdigest()
    link = repo / "snapshots" / COMMIT / "m-Q4_K_M.gguf"
    for folder in (blob.parent, link.parent, repo / "refs"):
        folder.mkdir(parents=True)
    blob.write_bytes(BODY)
    link.symlink_to(blob)
    (repo / "refs" / "main").write_text(COMMIT)
    return link


def test_the_cache_is_used_in_place(hub, cache):
    for ref in ("hf:o/r", "hf:o/r/m-Q4_K_M.gguf", "hf:o/r:q4_k_m", f"hf:o/r@{COMMIT}"):
        model = store.resolve(ref)
        assert (model.path, model.in_place) == (cache, True)
        assert model.sha256 == hashlib.sha256(BODY).hexdigest()
    for ref in ("hf:o/r@other", "hf:o/r:Q8_0", "hf:o/other"):
        with pytest.raises(ModelNotFound):
            store.resolve(ref)
    model = store.pull("hf:o/r:q4_k_m")
    assert model.evidence[0].checked == "hash from the Hugging Face cache"
    assert hub.requests == []
    store.remove("hf:o/r:q4_k_m")
    assert cache.read_bytes() == BODY


def test_the_hub_says_what_a_repository_means_and_its_cache_what_is_here(hub, cache):
    hub.files["o/r"] = {"README.md": b"new", "m-Q4_K_M.gguf": BODY}
    earlier = cache.parent.with_name("f" * 40)  # the commit before, the same model
    cache.parent.rename(earlier)
    model = store.pull("hf:o/r")
    assert (model.path, model.in_place) == (earlier / cache.name, True)
    assert hub.requests != []
    assert hub.gets() == []


def test_the_only_file_in_the_cache_need_not_be_the_one_that_is_meant(hub, cache, monkeypatch):
    small = cache.rename(cache.with_name("m-Q2_K.gguf"))
    assert store.resolve("hf:o/r").path == small
    hub.files["o/r"] = {"m-Q2_K.gguf": BODY, "m-Q4_K_M.gguf": gguf(500)}
    model = store.pull("hf:o/r")
    assert (model.path.name, model.in_place) == ("m-Q4_K_M.gguf", False)
    store.remove("hf:o/r")
    monkeypatch.setenv("EDGE_OFFLINE", "1")
    assert store.pull("hf:o/r").path == small


def test_a_damaged_cache_file_is_not_kept(hub, cache):
    hub.files["o/r"] = {cache.name: BODY}
    cache.resolve().write_bytes(gguf(300_000, seed=1))
    with pytest.raises(HashMismatch, match="cache"):
        store.pull("hf:o/r")
    assert not store.verify("hf:o/r").ok
