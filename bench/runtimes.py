"""The runtimes that `edge bench speed` compares: ours, and the peers that this machine has.

A peer is named NAME, or NAME=PATH where it cannot read the model's own file.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge import store
from edge.artifact import is_onnx, of_gguf, of_onnx
from edge.child import python_m
from edge.errors import EngineError, RequestError
from edge.machine import host
from edge.planner import Plan

from . import peer_work
from .llama_bench import program

OURS, LLAMA_BENCH = "edge", "llama-bench"


@dataclass(frozen=True)
class Peer:
    """A runtime to compare with.

    python    the environment variable that names its Python; "" for what runs in ours
    script    what makes that environment
    reads     what stands behind NAME=; "" for what reads the model's own GGUF file
    contents  the file by which a folder of that kind is known
    """

    python: str = ""
    script: str = ""
    reads: str = ""
    contents: str = ""


PEERS: Mapping[str, Peer] = {
    "llama-cpp-python": Peer(),
    LLAMA_BENCH: Peer(),
    "xllamacpp": Peer("EDGE_XLLAMACPP_PYTHON", "bench/peers/xllamacpp.sh"),
    "torch": Peer(
        "EDGE_TORCH_PYTHON", "bench/peers/torch.sh", "the checkpoint it was converted from", "config.json"
    ),
    "onnxruntime-genai": Peer(
        "EDGE_GENAI_PYTHON",
        "bench/peers/onnxruntime_genai.sh",
        "the folder that bench/peers/onnxruntime_genai.sh made of its checkpoint",
        "genai_config.json",
    ),
}


@dataclass(frozen=True)
class Versus:
    """A peer as it was asked for: its name, and what it reads in place of the model's file."""

    name: str
    path: Path | None = None


def versus(text: str) -> Versus:
    """`NAME` or `NAME=PATH`. Raises RequestError for an unknown name, and for a path that is missing or not wanted."""
    name, equals, path = text.partition("=")
    if name not in PEERS:
        raise RequestError(f"{name!r} is no peer", hint=f"one of {', '.join(PEERS)}")
    peer = PEERS[name]
    if not peer.reads:
        if equals:
            raise RequestError(f"{name} reads the model's own file", hint=f"write --vs {name}")
        return Versus(name)
    if not path:
        raise RequestError(f"{name} cannot read GGUF", hint=f"--vs {name}=DIR with {peer.reads}")
    if not Path(path, peer.contents).is_file():
        raise RequestError(f"{path} has no {peer.contents}", hint=f"--vs {name}=DIR with {peer.reads}")
    return Versus(name, Path(path))


def command(runtime: Versus, decided: Plan) -> list[str]:
    """The command of a worker process. Raises EngineError where the peer's environment is not named or not there."""
    threads = decided.threads
    counts = map(str, (threads.prefill, threads.decode, decided.context))
    words = [runtime.name, str(runtime.path or decided.path), *counts]
    peer = PEERS.get(runtime.name)
    if peer is None or not peer.python:
        return python_m("edge.bench.work", *words)
    return [python_of(runtime.name, peer), peer_work.__file__, *words]


def threads_of(decided: Plan) -> int | str:
    """The plan's threads: their number, or both where prefill and decode have different ones."""
    prefill, decode = decided.threads.prefill, decided.threads.decode
    return decode if prefill == decode else f"{prefill} for prefill, {decode} for decode"


def python_of(name: str, peer: Peer) -> str:
    """The Python that has the peer. Raises EngineError."""
    hint = f"{peer.script} DIR, then {peer.python}=DIR/bin/python"
    python = os.environ.get(peer.python)
    if not python:
        raise EngineError(f"{name} is not here", hint=hint)
    if not shutil.which(python):
        raise EngineError(f"{name} is not here: {peer.python} names {python}, which does not run", hint=hint)
    return python


def check(peers: Sequence[Versus], decided: Plan) -> None:
    """Raise RequestError for a peer that reads GGUF alone where the model is none, or that is named twice, EngineError
    for one that is not here."""
    names = [peer.name for peer in peers]
    if len(set(names)) < len(names):
        raise RequestError("a peer is named twice", hint="name each once")
    for name in names:
        if not PEERS[name].reads:
            check_gguf(decided, name)
    for peer in peers:
        program(LLAMA_BENCH) if peer.name == LLAMA_BENCH else command(peer, decided)


def check_gguf(decided: Plan, reader: str) -> None:
    """Raise RequestError for a model that is no GGUF file, which `reader` cannot read."""
    if not decided.backend.startswith("llama.cpp"):
        raise RequestError(
            f"{reader} reads GGUF files, and {decided.artifact} is none", hint="measure its GGUF file"
        )


def check_writes(decided: Plan) -> None:
    """Raise RequestError for a model that continues no text: llama.cpp ends the process that asks it to."""
    model = store.resolve(str(decided.path))
    found = of_onnx(model) if is_onnx(model) else of_gguf(model, host())
    if found.encodes or found.refusals:
        raise RequestError(
            f"{decided.artifact} continues no text, whose speed is measured",
            hint="`edge list` names models that do",
        )
