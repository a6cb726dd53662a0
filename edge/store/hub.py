"""What a Hugging Face reference means: on the hub through its API, or on this disk in its cache.

huggingface_hub supplies addresses, tokens and metadata; the bytes come through `download`, which hashes them.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from edge.errors import DownloadError, ModelNotFound, RequestError, UnsafeFile
from edge.store import checkpoints
from edge.store.content import Remote, Wanted, prove
from edge.store.download import Again, fetch, patiently, retry_after, timeout
from edge.store.home import name_for
from edge.store.records import one_line
from edge.store.refs import SAFETENSORS, Hub, check_member

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

SPLIT = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)


def wanted(ref: Hub) -> tuple[list[Wanted], str]:
    """The files that `ref` names on the hub, pinned to a commit, and the licence.

    Of a checkpoint in shards the index is fetched, to know them. Raises ModelNotFound, RequestError (ambiguous),
    DownloadError, or UnsafeFile for pickles and for an index that cannot be followed.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    info, refused = listed(ref)
    headers = tuple(build_hf_headers(library_name="edge-runtime").items())
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}

    def promised(path: str, name: str) -> Wanted:
        check_member(path, f"hf:{ref.repo}/{path}")  # the listing is the server's word
        sibling = siblings[path]
        return Wanted(
            name=name,
            source=f"hf:{ref.repo}/{path}@{info.sha}",
            origin=Remote(hf_hub_url(ref.repo, path, revision=info.sha), headers, refused),
            bytes=sibling.lfs.size if sibling.lfs else sibling.size,
            sha256=sibling.lfs.sha256 if sibling.lfs else "",
            git_sha1="" if sibling.lfs else sibling.blob_id or "",
            promised_by="the hub",
        )

    paths = list(siblings)
    if parts := checkpoint(paths, ref, lambda: small(promised(checkpoints.INDEX, checkpoints.INDEX))):
        files = [promised(path, path) for path in parts]
    else:
        files = [promised(path, Path(path).name) for path in choose(paths, ref)]
    licences = [tag.partition(":")[2] for tag in info.tags or () if tag.startswith("license:")]
    return files, one_line(", ".join(licences))


def listed(ref: Hub) -> tuple[ModelInfo, str]:
    """What the hub says of a repository, and what to do where it refuses a file of it.

    Raises ModelNotFound or DownloadError.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(library_name="edge-runtime")
    refused = (
        f"accept its licence at {api.endpoint}/{ref.repo}, then set HF_TOKEN to a token that may read it"
    )

    def ask() -> ModelInfo:
        try:
            return api.model_info(
                ref.repo, revision=ref.revision or None, files_metadata=True, timeout=timeout()
            )
        except HfHubHTTPError as error:
            code = error.response.status_code
            if code == 404:
                raise ModelNotFound(f"the hub has no {ref}", hint="check owner, name and revision") from None
            if code in (401, 403):
                raise DownloadError(
                    f"the hub refuses {ref.repo} (HTTP {code}): it is private, gated or does not exist",
                    hint=f"check the name; {refused}",
                ) from None
            if code == 429 or code >= 500:
                raise Again(f"HTTP {code}", retry_after(error.response)) from None
            raise DownloadError(f"the hub answers HTTP {code} for {ref}") from None
        except (ValueError, TypeError, KeyError):
            raise DownloadError(
                f"{api.endpoint} does not speak the hub's API", hint="check HF_ENDPOINT"
            ) from None

    return patiently(ask, api.endpoint.partition("://")[2]), refused


def ggufs(ref: Hub) -> list[tuple[str, int]]:
    """Each GGUF model of a repository: the reference that pulls it, at the commit it has now, and its bytes.

    What is not whole, of unknown length or of a name that cannot be used is left out. Raises as `listed`.
    """
    info, _ = listed(ref)
    sizes = {
        sibling.rfilename: sibling.lfs.size if sibling.lfs else sibling.size
        for sibling in info.siblings or ()
    }
    found = []
    for parts in models_of(list(sizes)):
        lengths = [sizes[part] for part in parts]
        with suppress(RequestError, UnsafeFile):
            complete(parts)
            check_member(parts[0], f"hf:{ref.repo}/{parts[0]}")
            if all(length for length in lengths):
                found.append((f"hf:{ref.repo}/{parts[0]}@{info.sha}", sum(length or 0 for length in lengths)))
    return found


def small(wanted: Wanted) -> bytes:
    """The content of an index, as the hub promises it."""
    if wanted.bytes is None or wanted.bytes > checkpoints.MAX_INDEX:
        length = "of unknown length" if wanted.bytes is None else f"{wanted.bytes:,} bytes long"
        raise UnsafeFile(
            f"{wanted.name} is {length}; {checkpoints.MAX_INDEX:,} is the limit", hint="take another revision"
        )
    assert isinstance(wanted.origin, Remote)
    with tempfile.TemporaryDirectory(prefix="edge-") as folder:
        partial = Path(folder, wanted.name)
        prove(partial, wanted, fetch(wanted, wanted.origin, partial, lambda step: None))
        return partial.read_bytes()


def checkpoint(paths: list[str], ref: Hub, index: Callable[[], bytes]) -> list[str]:
    """The files of the checkpoint or adapter that `ref` means; empty when it means a GGUF or a named file.

    A bare repository with a GGUF file means that: it runs as it is. Raises as `checkpoints.files_of`, and
    ModelNotFound, or UnsafeFile for pickles, when there is nothing that could be meant.
    """
    if ref.path or ref.quant not in ("", SAFETENSORS) or (not ref.quant and models_of(paths)):
        return []
    if found := checkpoints.files_of(paths, index):
        return found
    what = f"hf:{ref.repo}" if ref.quant else f"hf:{ref.repo} has no GGUF file and"
    raise checkpoints.nothing(what, paths, choices(models_of(paths), ref))


def choose(paths: list[str], ref: Hub) -> list[str]:
    """The file that `ref` means among a repository's; every part of it when it is split.

    Without path or tag it is the Q4_K_M, else the only GGUF. Raises ModelNotFound, or RequestError with the
    choices; UnsafeFile when a part is missing.
    """
    if ref.path:
        found = [path for path in paths if path == ref.path]
        if not found:
            raise ModelNotFound(f"hf:{ref.repo} has no {ref.path}", hint=choices(models_of(paths), ref))
        return complete(next((parts for parts in models_of(paths) if ref.path in parts), found))
    models = models_of(paths)
    fitting = [parts for parts in models if has_tag(parts[0], ref.quant or "Q4_K_M")]
    if not fitting and not ref.quant:
        fitting = models
    if not fitting:
        raise ModelNotFound(
            f"hf:{ref.repo} has no GGUF file{f' tagged {ref.quant}' if ref.quant else ''}",
            hint=choices(models, ref),
        )
    if len(fitting) > 1:
        hint = choices(fitting, ref)
        if not ref.quant and checkpoints.CONFIG in paths:
            hint += f"; hf:{ref.repo}:{SAFETENSORS} is its checkpoint"
        raise RequestError(f"{ref} could be {len(fitting)} files", hint=hint)
    return complete(fitting[0])


def models_of(paths: list[str]) -> list[list[str]]:
    """The GGUF models among `paths`, each a list of its parts in order."""
    whole: dict[str, list[str]] = {}
    for path in sorted(paths):
        if not path.lower().endswith(".gguf") or Path(path).name.startswith("mmproj"):
            continue  # mmproj: a vision projector, never the model itself
        match = SPLIT.fullmatch(path)
        whole.setdefault(f"{match['stem']}-of-{match['count']}" if match else path, []).append(path)
    return list(whole.values())


def complete(parts: list[str]) -> list[str]:
    match = SPLIT.fullmatch(parts[0])
    if match and len(parts) != int(match["count"]):
        raise UnsafeFile(
            f"{match['stem']} has {len(parts)} of its {int(match['count'])} parts", hint="name another file"
        )
    return parts


def has_tag(path: str, tag: str) -> bool:
    """Whether `tag` stands in the path as a whole word: Q4_K is not in Q4_K_M."""
    return re.search(rf"(?<![A-Z0-9_]){re.escape(tag)}(?![A-Z0-9_])", path.upper()) is not None


def choices(models: list[list[str]], ref: Hub) -> str:
    if not models:
        return "name another repository"
    shown = ", ".join(f"hf:{ref.repo}/{parts[0]}" for parts in models[:8])
    return f"choose one of {shown}" + (f" and {len(models) - 8} more" if len(models) > 8 else "")


def cached(ref: Hub) -> list[Path]:
    """The files of `ref` in the Hugging Face cache of this disk; empty when they are not all there.

    A checkpoint without a tokenizer was fetched for its weights alone, and does not count. The layout is
    documented: models--owner--repo/refs/<branch> holds a commit, snapshots/<commit>/ links to the blobs.
    """
    repo = cache_of(ref)
    revision = ref.revision or "main"
    pointer = repo / "refs" / revision
    commit = pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else revision
    snapshot = repo / "snapshots" / commit
    present = [str(path.relative_to(snapshot)) for path in snapshot.rglob("*") if path.is_file()]
    if not present:
        return []
    try:
        found = checkpoint(present, ref, lambda: index_at(snapshot)) or choose(present, ref)
    except (ModelNotFound, UnsafeFile):
        return []
    if found[0] == checkpoints.CONFIG and len(found) > 1 and not set(checkpoints.TOKENIZERS) & set(found):
        return []
    return [snapshot / path for path in found]


def index_at(folder: Path) -> bytes:
    """The beginning of a folder's index, one byte more than is believed."""
    with (folder / checkpoints.INDEX).open("rb") as file:
        return file.read(checkpoints.MAX_INDEX + 1)


def cached_copies(ref: Hub, files: Sequence[Wanted]) -> list[Path]:
    """These very files in the Hugging Face cache, by the hashes that the hub promised; empty when not all are.

    Any snapshot will do, since a commit that only touched the README has the same model. The parts of a split
    model are taken from one, where llama.cpp finds them side by side, and so are those of a checkpoint.
    """
    for snapshot in sorted(cache_of(ref).glob("snapshots/*")):
        present = [path for path in snapshot.rglob("*") if path.is_file()]
        there = {(path.name, cache_hash(path)): path for path in present}
        there |= {(path.relative_to(snapshot).as_posix(), cache_hash(path)): path for path in present}
        keys = [(file.name, file.sha256 or file.git_sha1) for file in files]
        if all(digest and (name, digest) in there for name, digest in keys):
            return [there[key] for key in keys]
    return []


def name_of(ref: Hub, names: Sequence[str]) -> str:
    """What a model of these files is called: by its repository when it is a checkpoint, else by its file."""
    return name_for(ref.repo.partition("/")[2] if checkpoints.is_folder(names) else names[0])


def cache_of(ref: Hub) -> Path:
    """The folder of a repository in the Hugging Face cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser() / f"models--{ref.repo.replace('/', '--')}"


def cache_hash(path: Path) -> str:
    """The sha256 (or, outside of LFS, git's sha1) of a cached file: its blob is called by it. Else empty."""
    blob = path.resolve().name
    return blob if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", blob) else ""
