"""A model hub on the loopback, as far as huggingface_hub and a downloader need one, with faults on request.

It speaks `GET /api/models/<repo>[/revision/<rev>]?blobs=true` and `GET|HEAD /<repo>/resolve/<rev>/<path>`
with Range, If-Range and ETag. `hub.fault` is called before a file is sent and may answer in the hub's stead.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import TracebackType
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Fault = Callable[["Handler", bytes], bool]


def gguf(size: int, seed: int = 0) -> bytes:
    """`size` bytes that begin like a GGUF file and repeat nowhere."""
    pieces = (hashlib.sha256(b"%d %d" % (seed, n)).digest() for n in range(size // 32 + 1))
    return (b"GGUF" + b"".join(pieces))[:size]


class FakeHub:
    """`files`: repository → path → bytes. `requests`: what came in, as (method, path, headers)."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.small: set[str] = set()  # paths outside of LFS: git's sha1 and no sha256
        self.hidden: set[str] = set()  # repositories that answer 401 without a token
        self.fault: Fault | None = None
        self.api_fault: Fault | None = None
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> FakeHub:
        Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.server.shutdown()
        self.server.server_close()

    def gets(self) -> list[dict[str, str]]:
        """The headers of each request for a file's bytes."""
        return [headers for method, path, headers in self.requests if method == "GET" and "/resolve/" in path]


class Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            self.close_connection = True  # the client went away, as some tests make it do

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, {k.title(): v for k, v in self.headers.items()}))
        if path.startswith("/api/models/"):
            self.info(path.removeprefix("/api/models/").partition("/revision/")[0])
        elif "/resolve/" in path:
            repo, _, rest = path.strip("/").partition("/resolve/")
            body = self.hub.files.get(repo, {}).get(rest.partition("/")[2])
            self.answer(404, b"Entry not found") if body is None else self.file(body)
        else:
            self.answer(404, b"")

    def info(self, repo: str) -> None:
        if self.hub.api_fault and self.hub.api_fault(self, b""):
            return
        if repo in self.hub.hidden and "Authorization" not in self.headers:
            self.answer(401, b'{"error": "Invalid username or password."}')
        elif repo not in self.hub.files:
            self.answer(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
        else:
            siblings = [self.sibling(path, body) for path, body in self.hub.files[repo].items()]
            info = {"id": repo, "sha": COMMIT, "tags": ["gguf", "license:mit"], "siblings": siblings}
            self.answer(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def sibling(self, path: str, body: bytes) -> dict[str, object]:
        blob = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
        fields: dict[str, object] = {"rfilename": path, "size": len(body), "blobId": blob}
        if path not in self.hub.small:
            sha256 = hashlib.sha256(body).hexdigest()
            fields["lfs"] = {"sha256": sha256, "size": len(body), "pointerSize": 134}
        return fields

    def file(self, body: bytes) -> None:
        if self.hub.fault and self.hub.fault(self, body):
            return
        etag = f'"{hashlib.sha256(body).hexdigest()}"'
        headers = {
            "ETag": etag,
            "X-Repo-Commit": COMMIT,
            "X-Linked-Size": str(len(body)),
            "X-Linked-Etag": etag,
        }
        start = self.start()
        if start is None or self.headers.get("If-Range", etag) != etag:
            self.answer(200, body, headers)
        elif start >= len(body):
            self.answer(416, b"", {"Content-Range": f"bytes */{len(body)}"})
        else:
            span = f"bytes {start}-{len(body) - 1}/{len(body)}"
            self.answer(206, body[start:], headers | {"Content-Range": span})

    def start(self) -> int | None:
        """The byte from which the client wants to go on."""
        asked = self.headers.get("Range", "")
        return int(asked.removeprefix("bytes=").rstrip("-")) if asked else None

    def answer(
        self, code: int, body: bytes, headers: dict[str, str] | None = None, stop: int | None = None
    ) -> None:
        """Send a whole answer, or its head and the first `stop` bytes only."""
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if stop is None else body[:stop])
            self.wfile.flush()
        if stop is not None:
            self.close_connection = True


def times(count: int, fault: Fault) -> Fault:
    """That fault for the first `count` requests, then none."""
    left = [count]

    def limited(handler: Handler, body: bytes) -> bool:
        left[0] -= 1
        return left[0] >= 0 and fault(handler, body)

    return limited


def drop(after: int) -> Fault:
    """Close the connection after that many bytes of the file, honouring Range."""

    def fault(handler: Handler, body: bytes) -> bool:
        etag = f'"{hashlib.sha256(body).hexdigest()}"'
        start = handler.start() or 0
        span = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if start else {}
        handler.answer(206 if start else 200, body[start:], {"ETag": etag, **span}, stop=after)
        return True

    return fault


def stall(after: int, seconds: float = 20) -> Fault:
    """Send that many bytes and then nothing."""

    def fault(handler: Handler, body: bytes) -> bool:
        etag = f'"{hashlib.sha256(body).hexdigest()}"'
        handler.answer(200, body, {"ETag": etag}, stop=after)
        time.sleep(seconds)
        return True

    return fault


def trickle(pieces: int, seconds: float) -> Fault:
    """Send the file in so many pieces, with a pause after each."""

    def fault(handler: Handler, body: bytes) -> bool:
        etag = f'"{hashlib.sha256(body).hexdigest()}"'
        handler.answer(200, body, {"ETag": etag}, stop=0)
        step = len(body) // pieces + 1
        for start in range(0, len(body), step):
            handler.wfile.write(body[start : start + step])
            handler.wfile.flush()
            time.sleep(seconds)
        return True

    return fault


def status(code: int, headers: dict[str, str] | None = None) -> Fault:
    """Answer with that status and no file."""

    def fault(handler: Handler, body: bytes) -> bool:
        handler.answer(code, b"", headers)
        return True

    return fault


def instead(body: bytes, headers: dict[str, str] | None = None) -> Fault:
    """Send those bytes in place of the file, ignoring Range."""

    def fault(handler: Handler, _: bytes) -> bool:
        handler.answer(200, body, headers)
        return True

    return fault


def no_range(handler: Handler, body: bytes) -> bool:
    """Send the whole file whatever part was asked for."""
    handler.answer(200, body)
    return True


def redirect(base: str) -> Fault:
    """Send the client to the same path on another server."""

    def fault(handler: Handler, body: bytes) -> bool:
        handler.answer(302, b"", {"Location": base + handler.path})
        return True

    return fault


def point_at(hub: FakeHub, monkeypatch, cache) -> None:
    """Make this process's huggingface_hub, which read its environment when it was imported, use this hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
