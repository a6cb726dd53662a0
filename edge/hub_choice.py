"""Which GGUF file of a hub repository this host should run, by what the hub says of each: its name and its bytes."""

from __future__ import annotations

import re

from edge import rates as measured
from edge.candidate import PULL, Candidate
from edge.choose import Choice, choose
from edge.errors import RequestError
from edge.gguf_header.tables import FILE_TYPES
from edge.goals import Goal
from edge.machine import Host, host
from edge.memory import PROCESS_BYTES
from edge.store import home, hub
from edge.store.refs import Hub, parse

NOTE = "header not here: memory is what its bytes say, the context not counted"


def choose_file(ref: str, goal: Goal, *, on: Host | None = None) -> Choice:
    """Choose among a repository's GGUF files; `pick` is a reference that pulls that very one.

    Nothing of them was measured here, so the default is Q4_K_M, with that reason. Raises RequestError for what is no
    repository or has no such files, Offline, ModelNotFound and DownloadError as `edge pull` does.
    """
    target = parse(ref)
    if not isinstance(target, Hub) or target.path or target.quant:
        raise RequestError(
            f"{ref} is one model, and --for-host chooses among a repository's files",
            hint="leave --for-host out, or give hf:owner/repo",
        )
    home.stay_online(ref)
    machine = on or host()
    backend = machine.chosen.backend
    on_cpu = backend.endswith("-cpu")
    files = [of_file(name, size) for name, size in hub.ggufs(target)]
    levelled = [one for one in files if one.level] or files[:1] * (len(files) == 1)
    if not levelled:
        raise RequestError(
            f"{ref} has no GGUF file whose name says its level",
            hint=f"`edge pull hf:{target.repo}:safetensors`, then `edge convert --for-host`",
        )
    return choose(
        levelled,
        measured.load(machine) if on_cpu else None,
        goal,
        budget=machine.memory.available_bytes,
        unmeasured=measured.why_none(machine) if on_cpu else f"they are not predicted for {backend}",
    )


def of_file(ref: str, size: int) -> Candidate:
    """A file known by its name and length. Its memory is at least its own bytes: what kernels rearrange is read, not
    mapped beside."""
    return Candidate(
        artifact=ref,
        level=level_in(ref),
        bytes=size,
        memory_bytes=size + PROCESS_BYTES,
        where=PULL,
        note=NOTE,
    )


def level_in(name: str) -> str:
    """The level that a file's name says, as a word of its own; empty where it says none."""
    words = "|".join(sorted(map(re.escape, FILE_TYPES.values()), key=len, reverse=True))
    file = name.rpartition("@")[0].rpartition("/")[2] or name
    found = re.findall(rf"(?<![A-Z0-9_])({words})(?![A-Z0-9_])", file.upper())
    return found[-1] if found else ""
