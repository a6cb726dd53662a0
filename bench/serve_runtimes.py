"""The runtimes that `edge.bench.serve` compares, each in a process of its own, with room for so many conversations."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol
from urllib.error import URLError
from urllib.request import urlopen

from edge.child import python_m
from edge.errors import EngineError, RequestError
from edge.planner import Plan

from . import peer_serve, runtimes
from .llama_bench import program
from .runtimes import Peer, python_of
from .serve_load import Load, asked

START_S = 120  # a server that is not ready by then will never be


class Runtime(Protocol):
    """A model loaded somewhere. `turn` asks all prompts at once and waits for the last answer."""

    def turn(self, prompts: Sequence[str], tokens: int) -> Load: ...
    def close(self) -> None: ...


class Ours:
    """Our engine in a child process, its answers read there."""

    def __init__(self, decided: Plan) -> None:
        threads = decided.threads
        words = [decided.path, threads.prefill, threads.decode, decided.context, decided.parallel]
        command = python_m("edge.bench.serve_work", *map(str, words))
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    def turn(self, prompts: Sequence[str], tokens: int) -> Load:
        """Raises EngineError where the process ends."""
        assert self._process.stdin
        with suppress(BrokenPipeError):  # it is gone; reading says so
            self._process.stdin.write(json.dumps({"prompts": prompts, "tokens": tokens}) + "\n")
            self._process.stdin.flush()
        return Load(**self._read())

    def close(self) -> None:
        """End the process and wait."""
        with self._process, suppress(BrokenPipeError):  # closes both pipes, which ends it
            pass

    def _read(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise EngineError("edge ended before its work was done", hint="its last words are above")
        return json.loads(line)


class Server:
    """A server of another program, asked over HTTP."""

    def __init__(
        self, name: str, command: Sequence[str], port: int, ready: str, path: str, body: dict[str, Any]
    ) -> None:
        self._name, self._port, self._path, self._body = name, port, path, body
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 — as long as the server
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT
        )
        try:
            self._wait(f"http://127.0.0.1:{port}{ready}")
        except BaseException:
            self.close()
            raise

    def turn(self, prompts: Sequence[str], tokens: int) -> Load:
        """Raises EngineError where the server refuses or is gone."""
        bodies = [{**self._body, "prompt": prompt, "max_tokens": tokens} for prompt in prompts]
        try:
            return asyncio.run(asked(self._port, self._path, bodies))
        except OSError as error:
            raise EngineError(f"{self._name} is gone ({error}): {self._last_words()}") from error

    def close(self) -> None:
        """End the server and wait."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _wait(self, url: str) -> None:
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            if self._process.poll() is not None:
                break
            with suppress(URLError, OSError), urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
            time.sleep(0.1)
        raise EngineError(f"{self._name} does not start: {self._last_words()}")

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "no output"


def llama_server(decided: Plan) -> Server:
    """llama-server on the plan's file, threads, slots, context and cache types, without its caches of prompts."""
    port = free_port()
    slots, threads = str(decided.parallel), decided.threads
    command = [str(program("llama-server")), "-m", str(decided.path)]
    command += ["-t", str(threads.decode), "-tb", str(threads.prefill)]
    command += ["-np", slots, "-c", str(decided.context * decided.parallel), "--no-kv-unified"]
    command += ["-ctk", decided.kv, "-ctv", decided.kv, "--no-cache-prompt", "-cram", "0", "-ctxcp", "0"]
    command += ["-fa", "auto" if decided.flash is None else "on" if decided.flash else "off"]
    command += ["-fit", "off", "--no-ui", "--host", "127.0.0.1", "--port", str(port)]
    # Greedy with no other sampler: the least it can do for a token
    body = {"stream": True, "temperature": 0, "samplers": ["temperature"], "ignore_eos": True}
    return Server("llama-server", command, port, "/health", "/completion", {**body, "cache_prompt": False})


def llama_cpp_server(decided: Plan) -> Server:
    """llama_cpp.server, which answers one request after the other; run by the Python that $EDGE_LLAMA_CPP_SERVER names.

    It cannot be told to go on after an end: an answer that ends early counts as it is. Raises EngineError.
    """
    python = python_of("llama_cpp.server", LLAMA_CPP_SERVER)
    port, threads = free_port(), decided.threads
    command = [
        python,
        "-m",
        "llama_cpp.server",
        "--model",
        str(decided.path),
        "--n_ctx",
        str(decided.context),
    ]
    command += ["--n_threads", str(threads.decode), "--n_threads_batch", str(threads.prefill)]
    command += ["--interrupt_requests", "False"]
    command += ["--verbose", "False", "--host", "127.0.0.1", "--port", str(port)]
    body = {"stream": True, "temperature": 0}
    return Server("llama_cpp.server", command, port, "/v1/models", "/v1/completions", body)


def xllamacpp_server(decided: Plan) -> Server:
    """The server inside xllamacpp, on the plan's file, threads, slots, context and cache types. Raises EngineError."""
    port = free_port()
    words = [decided.path, decided.threads.prefill, decided.threads.decode]
    words += [decided.context, decided.parallel, decided.kv, port]
    python = python_of("xllamacpp", XLLAMACPP)
    body = {"stream": True, "temperature": 0, "samplers": ["temperature"], "ignore_eos": True}
    command = [python, peer_serve.__file__, *map(str, words)]
    return Server("xllamacpp", command, port, "/health", "/completion", {**body, "cache_prompt": False})


PEERS: dict[str, Callable[[Plan], Server]] = {
    "llama-server": llama_server,
    "llama_cpp.server": llama_cpp_server,
    "xllamacpp": xllamacpp_server,
}
ONE_AT_A_TIME = {"llama_cpp.server"}  # whatever is asked at once
# What names the Python that has a server
LLAMA_CPP_SERVER = Peer("EDGE_LLAMA_CPP_SERVER", "bench/peers/llama_cpp_server.sh")
XLLAMACPP = runtimes.PEERS["xllamacpp"]


def here(name: str) -> None:
    """Raise EngineError where what a server needs is not here."""
    if name == "llama-server":
        program(name)
    else:
        python_of(name, LLAMA_CPP_SERVER if name == "llama_cpp.server" else XLLAMACPP)


def available() -> tuple[list[str], list[str]]:
    """The servers that are here, and of each other one why not, in a line."""
    found, missing = [], []
    for name in PEERS:
        try:
            here(name)
            found.append(name)
        except EngineError as error:
            missing.append(error.line)
    return found, missing


def named(names: Sequence[str]) -> list[str]:
    """The names. Raises RequestError for one that is no server's or stands there twice, EngineError for one that is
    not here."""
    for name in names:
        if name not in PEERS:
            raise RequestError(f"{name!r} is no server", hint=f"one of {', '.join(PEERS)}")
        here(name)
    if len(set(names)) < len(names):
        raise RequestError("a server is named twice", hint="name each once")
    return list(names)


def free_port() -> int:
    """A port of this machine that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
