"""What a server or a network can do to a download, each done for real by a server of our own."""

from __future__ import annotations

import hashlib
import json
import socket
import time

import pytest
from fake_hub import FakeHub, drop, gguf, instead, no_range, point_at, redirect, stall, status, times

from edge import store
from edge.errors import DownloadError, HashMismatch, ModelNotFound, RequestError, StoreError, UnsafeFile
from edge.store import download

BODY = gguf(1_000_000)
REF = "hf:o/r"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setattr(download, "PAUSE", 0.01)
    with FakeHub() as hub:
        point_at(hub, monkeypatch, tmp_path / "hf" / "hub")
        hub.files["o/r"] = {"m.gguf": BODY}
        yield hub


def url(hub, body=BODY):
    return f"{hub.url}/o/r/resolve/main/m.gguf#sha256={hashlib.sha256(body).hexdigest()}"


def fails(error, says, home, ref=REF):
    """The pull ends in one line that says so, and leaves nothing under a real name."""
    with pytest.raises(error) as raised:
        store.pull(ref)
    assert says in raised.value.line
    assert "\n" not in raised.value.line
    left = {path.name for path in (home / "models").glob("[!.]*/*")} if home.exists() else set()
    assert left <= {"m.gguf.partial", "m.gguf.partial.etag"}
    assert store.models() == ()
    return left


def works(hub):
    """A good run after the fault ends with the right bytes and nothing else."""
    hub.fault = hub.api_fault = None
    hub.requests.clear()
    model = store.pull(REF)
    assert model.path.read_bytes() == BODY
    assert sorted(path.name for path in model.path.parent.iterdir()) == ["m.gguf", "model.json"]


def test_a_drop_is_resumed_where_it_happened(hub):
    hub.fault = times(1, drop(600_000))
    assert store.pull(REF).path.read_bytes() == BODY
    first, second = hub.gets()
    assert "Range" not in first
    assert int(second["Range"].removeprefix("bytes=").rstrip("-")) >= 500_000
    assert second["If-Range"] == f'"{hashlib.sha256(BODY).hexdigest()}"'


def test_drops_with_progress_do_not_end_a_pull(hub):
    hub.fault = times(6, drop(140_000))
    assert store.pull(REF).path.read_bytes() == BODY
    assert len(hub.gets()) == 7


def test_drops_without_progress_end_and_the_next_run_goes_on(hub, home):
    hub.fault = drop(0)
    assert fails(DownloadError, "run the same command again", home) <= {
        "m.gguf.partial.etag",
        "m.gguf.partial",
    }
    assert len(hub.gets()) == download.TRIES
    hub.fault = times(1, drop(600_000))
    store.pull(REF)


def test_a_partial_of_an_earlier_run_is_resumed(hub, home, monkeypatch):
    monkeypatch.setattr(download, "TRIES", 1)
    hub.fault = drop(600_000)
    assert "m.gguf.partial" in fails(DownloadError, "127.0.0.1", home)
    works(hub)
    assert "Range" in hub.gets()[0]


def test_a_partial_of_another_file_is_not_continued(hub, home, monkeypatch):
    monkeypatch.setattr(download, "TRIES", 1)
    hub.fault = drop(600_000)
    hub.files["o/r"] = {"m.gguf": gguf(1_000_000, seed=7)}
    fails(DownloadError, "127.0.0.1", home)
    hub.files["o/r"] = {"m.gguf": BODY}
    works(hub)  # the ETag differs, so the server sends all of it


def test_a_server_without_ranges_starts_over(hub):
    hub.fault = times(1, drop(600_000))
    good = hub.fault

    def drop_then_no_range(handler, body):
        return good(handler, body) or no_range(handler, body)

    hub.fault = drop_then_no_range
    assert store.pull(REF).path.read_bytes() == BODY


def test_a_complete_partial_needs_no_request(hub, home):
    folder = home / "models" / "m"
    folder.mkdir(parents=True)
    (folder / "m.gguf.partial").write_bytes(BODY)
    works(hub)
    assert hub.gets() == []


def test_a_partial_that_is_too_long_is_thrown_away(hub, home):
    folder = home / "models" / "m"
    folder.mkdir(parents=True)
    (folder / "m.gguf.partial").write_bytes(BODY + b"x")
    works(hub)


def test_a_stall_is_an_error(hub, home, monkeypatch):
    monkeypatch.setenv("EDGE_TIMEOUT", "0.5")
    hub.fault = stall(300_000)
    started = time.monotonic()
    assert "m.gguf.partial" in fails(DownloadError, "sent nothing for 0.5 s", home)
    assert time.monotonic() - started < 5
    works(hub)


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf"])
def test_a_timeout_is_a_number(hub, text, monkeypatch):
    monkeypatch.setenv("EDGE_TIMEOUT", text)
    with pytest.raises(RequestError, match="EDGE_TIMEOUT"):
        store.pull(REF)


def test_a_wrong_length_is_an_error(hub, home):
    hub.fault = instead(BODY + b"more")
    assert fails(DownloadError, "offers 1,000,004 bytes of m.gguf; 1,000,000 were promised", home) == set()
    hub.fault = instead(BODY[:-1])
    assert fails(DownloadError, "offers 999,999", home) == set()
    works(hub)


def test_wrong_bytes_are_deleted_and_not_resumed(hub, home):
    hub.fault = instead(gguf(1_000_000, seed=1))
    assert fails(HashMismatch, "the hub promised", home) == set()
    works(hub)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"<!DOCTYPE html><title>Sign in</title>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64, "Git LFS pointer"),
        (b"\x80\x04\x95pickle", "pickle"),
        (b"NOPE" + BODY[4:], "not a GGUF"),
    ],
)
def test_what_is_not_a_model_says_what_it_is(hub, home, body, says):
    hub.fault = instead(body)
    assert fails(UnsafeFile, says, home) == set()
    assert fails(UnsafeFile, says, home, url(hub)) == set()
    works(hub)


def test_busy_servers_are_waited_for(hub):
    hub.fault = times(2, status(503))
    hub.api_fault = times(1, status(500))
    assert store.pull(REF).path.read_bytes() == BODY


def test_retry_after_is_honoured(hub):
    hub.fault = times(1, status(429, {"Retry-After": "1"}))
    hub.api_fault = times(1, status(429, {"Retry-After": "0"}))
    started = time.monotonic()
    store.pull(REF)
    assert time.monotonic() - started >= 1


@pytest.mark.parametrize("where", ["fault", "api_fault"])
def test_a_long_wait_is_the_users_to_decide(hub, home, where):
    setattr(hub, where, status(429, {"Retry-After": "3600"}))
    fails(DownloadError, "asks to wait 3600 s", home)
    works(hub)


@pytest.mark.parametrize("where", ["fault", "api_fault"])
def test_a_broken_server_is_given_up(hub, home, where):
    setattr(hub, where, status(502))
    fails(DownloadError, "HTTP 502", home)
    works(hub)


@pytest.mark.parametrize("code", [401, 403])
@pytest.mark.parametrize("where", ["fault", "api_fault"])
def test_a_refusal_names_the_token_and_the_licence(hub, home, where, code):
    setattr(hub, where, status(code))
    fails(DownloadError, "HF_TOKEN", home)
    fails(DownloadError, f"accept its licence at {hub.url}/o/r", home)
    works(hub)


@pytest.mark.parametrize("where", ["fault", "api_fault"])
def test_not_found(hub, home, where):
    setattr(hub, where, status(404))
    fails(ModelNotFound, "has no", home)
    works(hub)


def test_odd_answers(hub, home):
    hub.fault = status(418)
    fails(DownloadError, "HTTP 418", home)
    hub.api_fault = instead(b"<html>")
    fails(DownloadError, "does not speak the hub's API", home)
    hub.api_fault = None
    hub.fault = instead(BODY, {"Content-Encoding": "gzip"})
    fails(DownloadError, "re-encoded", home)
    hub.fault = redirect(hub.url)
    fails(DownloadError, "redirect", home)
    works(hub)


def test_nobody_listens(hub, home, monkeypatch):
    from huggingface_hub import constants

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        silent = f"http://127.0.0.1:{free.getsockname()[1]}"
        fails(DownloadError, "127.0.0.1", home, f"{silent}/m.gguf#sha256={'a' * 64}")
        monkeypatch.setattr(constants, "ENDPOINT", silent)
        fails(DownloadError, "127.0.0.1", home)


def test_a_hub_that_stalls(hub, home, monkeypatch):
    monkeypatch.setenv("EDGE_TIMEOUT", "0.5")

    def silent(handler, _):
        time.sleep(5)
        return True

    hub.api_fault = silent
    fails(DownloadError, "sent nothing for 0.5 s", home)
    works(hub)


def test_a_part_that_nobody_asked_for(hub, home):
    def from_the_middle(handler, body):
        handler.answer(206, body[10:], {"Content-Range": f"bytes 10-{len(body) - 1}/{len(body)}"})
        return True

    def from_the_start(handler, body):
        handler.answer(206, body, {"Content-Range": f"bytes 0-{len(body) - 1}/{len(body)}"})
        return True

    hub.fault = from_the_middle
    fails(DownloadError, "another place", home)
    hub.fault = from_the_start
    assert store.pull(REF).path.read_bytes() == BODY


def test_a_redirect_to_plain_http_is_not_followed(hub, home):
    hub.fault = redirect("http://plain.invalid")
    fails(DownloadError, "without encryption", home, url(hub))


def test_a_web_address_with_its_hash(hub, home):
    model = store.pull(url(hub))
    assert (model.name, model.path.read_bytes()) == ("m", BODY)
    assert model.evidence[0].checked == "sha256 from the reference"
    assert store.resolve(url(hub)) == model
    store.remove("m")
    fails(HashMismatch, "the reference promised", home, url(hub, b"other"))
    fails(ModelNotFound, "has no", home, url(hub).replace("m.gguf", "n.gguf"))


def test_room_is_asked_for_first(hub, home):
    def too_much(handler, _):
        huge = {"rfilename": "m.gguf", "size": 1 << 55}
        info = {"id": "o/r", "sha": "0" * 40, "siblings": [huge]}
        handler.answer(200, json.dumps(info).encode(), {"Content-Type": "application/json"})
        return True

    hub.api_fault = too_much
    fails(StoreError, f"{1 << 55:,} bytes are needed", home)
    assert hub.gets() == []
    works(hub)


def test_a_safetensors_file_whose_length_looks_like_a_pickle_is_none():
    from edge.store.content import look

    header = b'{"x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'.ljust(
        640
    )  # 640 is 80 02 in little endian
    look("model.safetensors", len(header).to_bytes(8, "little") + header[:200])
