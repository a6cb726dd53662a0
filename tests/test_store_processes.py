"""Real processes and real disks: killed, side by side, full, read-only."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
from fake_hub import FakeHub, gguf, trickle

from edge import store

BODY = gguf(2_000_000)


@pytest.fixture
def hub():
    with FakeHub() as hub:
        hub.files["o/r"] = {"m.gguf": BODY}
        yield hub


def edge(hub, *args, **options):
    """`python -m edge …` against that hub, started."""
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment |= options.pop("env", {})
    command = [sys.executable, "-m", "edge", *args]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def ends(process, code, says=""):
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "Traceback" not in err
    if says:
        last = err.splitlines()[-1]
        assert last.startswith("edge: ")
        assert says in last
    return out


def test_a_killed_pull_is_taken_up(hub, home):
    hub.fault = trickle(20, 0.2)
    process = edge(hub, "pull", "hf:o/r")
    partial = home / "models" / "m" / "m.gguf.partial"
    deadline = time.monotonic() + 30
    while not (partial.exists() and partial.stat().st_size > 300_000):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert sorted(path.name for path in partial.parent.iterdir()) == ["m.gguf.partial", "m.gguf.partial.etag"]
    hub.fault = None
    ends(edge(hub, "pull", "hf:o/r"), 0)
    assert store.resolve("m").path.read_bytes() == BODY
    assert "Range" in hub.gets()[-1]
    assert not partial.exists()


def test_an_interrupted_pull_says_so(hub, home):
    hub.fault = trickle(20, 0.2)
    process = edge(hub, "pull", "hf:o/r")
    deadline = time.monotonic() + 30
    while not hub.gets():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    ends(process, 130, "interrupted")
    assert not (home / "models" / "m" / "m.gguf").exists()


def test_two_pulls_of_one_model_fetch_it_once(hub):
    hub.fault = trickle(10, 0.1)
    both = [edge(hub, "pull", "hf:o/r") for _ in range(2)]
    for process in both:
        ends(process, 0)
    assert store.resolve("m").path.read_bytes() == BODY
    assert len(hub.gets()) == 1


def test_a_full_disk(hub, tmp_path):
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("mounting a small disk needs root; the file size limit below stands in for it")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"mount is not allowed here: {mounted.stderr.decode().strip()}")
    try:
        ends(edge(hub, "pull", "hf:o/r", env={"EDGE_HOME": str(disk)}), 1, "2,000,000 bytes are needed")
        assert hub.gets() == []

        def length_unknown(handler, body):
            handler.protocol_version = "HTTP/1.0"
            handler.send_response(200)
            handler.end_headers()
            handler.wfile.write(body)
            handler.close_connection = True
            return True

        hub.fault = length_unknown
        url = f"{hub.url}/o/r/resolve/main/m.gguf#sha256={hashlib.sha256(BODY).hexdigest()}"
        ends(edge(hub, "pull", url, env={"EDGE_HOME": str(disk)}), 1, "no room to write")
        assert not list(disk.rglob("*.gguf"))
        subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
        hub.fault = None
        ends(edge(hub, "pull", url, env={"EDGE_HOME": str(disk)}), 0)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        ends(edge(hub, "pull", "hf:o/r", "--as", "n", env={"EDGE_HOME": str(disk)}), 1, "EDGE_HOME")
        ends(edge(hub, "rm", "m", env={"EDGE_HOME": str(disk)}), 1, "EDGE_HOME")
        ends(edge(hub, "verify", env={"EDGE_HOME": str(disk)}), 0)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_file_that_may_not_grow(hub, home):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    ends(edge(hub, "pull", "hf:o/r", preexec_fn=limit), 1, "no room to write")
    assert not (home / "models" / "m" / "m.gguf").exists()
    ends(edge(hub, "pull", "hf:o/r"), 0)


def test_a_folder_that_may_not_be_written(hub, home):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere; the read-only mount above stands in for it")
    home.mkdir()
    home.chmod(0o500)
    ends(edge(hub, "pull", "hf:o/r"), 1, "EDGE_HOME")
    home.chmod(0o700)
    ends(edge(hub, "pull", "hf:o/r"), 0)


def test_the_home_is_a_file(hub, home):
    home.write_text("")
    ends(edge(hub, "pull", "hf:o/r"), 1, "cannot use")


def test_offline_with_a_cold_store(hub):
    for switch in ("EDGE_OFFLINE", "HF_HUB_OFFLINE"):
        ends(edge(hub, "pull", "hf:o/r", env={switch: "1"}), 1, "once online, run `edge pull hf:o/r`")
    assert hub.requests == []


def test_the_environment_of_the_hub_is_honoured(hub, tmp_path):
    hub.hidden = {"o/r"}
    ends(edge(hub, "pull", "hf:o/r"), 1, "HF_TOKEN")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text("hf_kept")
    ends(edge(hub, "pull", "hf:o/r"), 0)
    assert hub.gets()[-1]["Authorization"] == "Bearer hf_kept"
