"""What a model reference may look like. Every part has an exact pattern: references become paths and URLs."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from edge.errors import RequestError, UnsafeFile

TRAINED = "train:"  # with the encoder's name: what the store says of where a trained head is from
SAFETENSORS = "safetensors"  # the tag that means a repository's checkpoint
WEIGHTS = (".gguf", ".safetensors", ".onnx")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")

RESERVED = ("model.json", ".partial", ".etag")

SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=,@ ()-]{0,199}")
OWNER_OR_REPO = r"[A-Za-z0-9_]+(?:[.-][A-Za-z0-9_]+)*"
HUB = re.compile(
    rf"hf:(?P<repo>{OWNER_OR_REPO}/{OWNER_OR_REPO})"
    r"(?:/(?P<path>[^@:]+)|:(?P<quant>[A-Za-z0-9][A-Za-z0-9._-]{0,31}))?"
    r"(?:@(?P<revision>[A-Za-z0-9](?:[A-Za-z0-9_/-]|\.(?!\.)){0,127}))?"
)
PYPI = re.compile(
    r"pypi:(?P<package>[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?)"
    r"==(?P<version>[0-9][A-Za-z0-9.!+_-]{0,63})#(?P<member>.+)"
)
SHA256 = re.compile(r"sha256=([0-9a-fA-F]{64})")


@dataclass(frozen=True)
class Name:
    """A kept model, a catalogue entry, or nothing; only looking tells."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Hub:
    """`hf:owner/repo`, with a path in it or a quant tag (`safetensors`: its checkpoint), and a revision."""

    repo: str
    path: str = ""
    quant: str = ""
    revision: str = ""

    def __str__(self) -> str:
        inside = f"/{self.path}" if self.path else f":{self.quant}" if self.quant else ""
        return f"hf:{self.repo}{inside}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class Wheel:
    """`pypi:package==version#member`: one file in a wheel, or the folder of a checkpoint."""

    package: str
    version: str
    member: str

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"

    def __str__(self) -> str:
        return f"pypi:{self.requirement}#{self.member}"


@dataclass(frozen=True)
class Url:
    """`https://host/file#sha256=…`."""

    url: str
    sha256: str

    @property
    def file(self) -> str:
        return PurePosixPath(unquote(urlsplit(self.url).path)).name

    def __str__(self) -> str:
        return f"{self.url}#sha256={self.sha256}"


@dataclass(frozen=True)
class Local:
    """A file or folder of this machine, used where it is."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


Ref = Name | Hub | Wheel | Url | Local


def parse(text: str) -> Ref:
    """What kind of reference `text` is.

    Raises RequestError for one that cannot be used and UnsafeFile for one that names a pickle.
    """
    if not text.strip() or not text.isprintable():
        raise RequestError(f"{text!r} is not a model reference", hint="`edge list` shows what can be pulled")
    if text.startswith("hf:"):
        return parse_hub(text)
    if text.startswith("pypi:"):
        return parse_wheel(text)
    if text.startswith(("https://", "http://")):
        return parse_url(text)
    if "/" in text or text.startswith(("~", ".")) or text.endswith(WEIGHTS + PICKLES):
        return parse_local(text)
    return Name(text)


def parse_hub(text: str) -> Hub:
    match = HUB.fullmatch(text)
    if not match or len(match["repo"]) > 96:
        raise RequestError(
            f"{text!r} is not a hub reference",
            hint="write hf:owner/repo, hf:owner/repo/file.gguf or hf:owner/repo:Q4_K_M, then @revision",
        )
    path, quant = match["path"] or "", (match["quant"] or "").upper()
    quant = SAFETENSORS if quant == SAFETENSORS.upper() else quant
    if path:
        check_member(path, text)
    return Hub(match["repo"], path, quant, match["revision"] or "")


def parse_wheel(text: str) -> Wheel:
    match = PYPI.fullmatch(text)
    if not match:
        raise RequestError(
            f"{text!r} is not a package reference", hint="write pypi:package==version#path/in/wheel"
        )
    check_member(match["member"], text)
    return Wheel(match["package"], match["version"], match["member"])


def parse_url(text: str) -> Url:
    bare, _, fragment = text.partition("#")
    try:
        parts = urlsplit(bare)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.username is not None or any(c in bare for c in " \\\"'<>`{}|^"):
        raise RequestError(f"{text!r} is not a web address", hint="write https://host/file.gguf#sha256=…")
    if parts.scheme == "http" and not is_loopback(host):
        raise RequestError(
            f"{bare} is not encrypted", hint="write https://; http:// is for this machine only"
        )
    match = SHA256.fullmatch(fragment)
    if not match:
        raise RequestError(
            f"{bare} comes without a hash",
            hint="append #sha256=<64 hex digits>: a web address alone does not say which bytes are the model",
        )
    ref = Url(bare, match[1].lower())
    check_member(ref.file, text)
    return ref


def parse_local(text: str) -> Local:
    path = Path(os.path.expanduser(text)).absolute()  # noqa: PTH111 - Path's raises for an unknown user
    refuse_pickle(path.name)
    return Local(path)


def check_member(path: str, text: str) -> None:
    """Raise unless `path` is a plain relative path, in an archive or a repository, to something safe."""
    if not all(SEGMENT.fullmatch(part) and not part.endswith((" ", ".")) for part in path.split("/")):
        raise RequestError(
            f"{text!r} has a path that cannot be used",
            hint="use plain folder and file names, without .., backslash or a leading dot",
        )
    if path.endswith(RESERVED):
        raise RequestError(f"{text!r} is not a model file", hint="the store uses that name itself")
    refuse_pickle(path)


def refuse_pickle(path: str) -> None:
    """Raise UnsafeFile for a name that promises a pickle: unpickling runs whatever code is in it."""
    if path.lower().endswith(PICKLES):
        raise UnsafeFile(
            f"{PurePosixPath(path).name} may be a pickle, which runs code when it is opened",
            hint="take the .safetensors or .gguf file of that model",
        )


def is_safe_file(name: str) -> bool:
    """Whether a file of a checkpoint folder may be taken along."""
    return not name.startswith(".") and not name.lower().endswith(PICKLES)


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
