"""Models whose files belong to somebody else: local paths and the Hugging Face cache. Used, never deleted."""

from __future__ import annotations

from pathlib import Path

from edge import onnx_folder
from edge.errors import HashMismatch, ModelNotFound, RequestError, UnsafeFile
from edge.store import checkpoints
from edge.store.home import name_for
from edge.store.records import File, Model, Report
from edge.store.refs import Hub, is_safe_file


def in_cache(ref: Hub) -> Model | None:
    """The model of `ref` in the Hugging Face cache, if every file of it is there."""
    from edge.store import hub

    if not (paths := hub.cached(ref)):
        return None
    named = (hub.cache_hash(path) for path in paths)
    hashes = (name if len(name) == 64 else "" for name in named)
    files = (
        File(path, path.stat().st_size, sha256, str(ref), "not checked")
        for path, sha256 in zip(paths, hashes, strict=True)
    )
    name = hub.name_of(ref, [path.name for path in paths])
    return lying(checkpoints.root(paths), str(ref), tuple(files), name)


def as_it_lies(path: Path) -> Model:
    """A file or checkpoint folder that was never pulled. Raises ModelNotFound or RequestError."""
    paths = local_files(path)
    files = tuple(File(file, file.stat().st_size, "", str(file), "not checked") for file in paths)
    model = path if path.is_dir() else paths[0]
    return lying(model, str(path), files, name_for(model.name))


def lying(path: Path, ref: str, evidence: tuple[File, ...], name: str) -> Model:
    """A model that is used where it is, without a record. Its hash is known when its only file's is."""
    sha256 = evidence[0].sha256 if len(evidence) == 1 else ""
    size = sum(file.bytes for file in evidence)
    files = tuple(file.path for file in evidence)
    return Model(name, path, ref, sha256, size, "", "", files, True, evidence)


def local_files(path: Path) -> list[Path]:
    """A file with all its parts, the safe files of a checkpoint's or an adapter's folder, or an ONNX model's.

    Raises ModelNotFound, RequestError, or UnsafeFile when a part is missing or the weights are pickles.
    """
    from edge.store.hub import SPLIT, complete

    if path.is_file():
        split = SPLIT.fullmatch(path.name)
        beside = sorted(path.parent.glob(f"*-of-{split['count']}.gguf")) if split else [path]
        parts = [file.name for file in beside if not split or file.name.startswith(f"{split['stem']}-")]
        return [path.parent / name for name in complete(parts)]
    if not path.exists():
        raise ModelNotFound(f"there is no file {path}", hint="check the path")
    if onnx_folder.is_folder(path):
        graphs = [file for file in path.glob("*.onnx*") if file.is_file()]
        return sorted([*graphs, *path.glob("*.json")])
    files = [
        file
        for file in [*path.glob("*"), *path.glob("*/*.json")]
        if file.is_file() and is_safe_file(file.name)
    ]
    names = {file.name for file in path.glob("*")}  # none where the folder may not be read
    configured = names & {checkpoints.CONFIG, checkpoints.ADAPTER_CONFIG}
    if not configured or not any(file.suffix == ".safetensors" for file in files):
        pickles = checkpoints.nothing(str(path), names, "")
        if configured and isinstance(pickles, UnsafeFile):
            raise pickles
        if checkpoints.CONFIG in names:
            raise RequestError(
                f"{path} has no weights: there is {checkpoints.CONFIG}, and neither .safetensors nor .onnx",
                hint="copy the model again, or convert its checkpoint again",
            )
        raise RequestError(
            f"{path} is not a checkpoint (config.json and .safetensors)", hint="name the model file in it"
        )
    return sorted(files)


def found(path: Path, report: Report) -> File:
    """A file as it lies there; held to its hash when it lies in the Hugging Face cache."""
    from edge.store import content, hub

    content.look_at(path)
    promised = hub.cache_hash(path)
    actual = content.digest(path, report)
    if promised and promised not in (actual, content.git_sha1(path)):
        raise HashMismatch(
            f"{path} is not the file that the Hugging Face cache says it is",
            hint="delete it there, then pull again",
        )
    checked = "hash from the Hugging Face cache" if promised else "nothing: it is as it was when pulled"
    return File(path, path.stat().st_size, actual, str(path), checked)
