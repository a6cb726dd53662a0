"""The one downloader: resumes, retries, enforces lengths, and hashes as it goes."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from edge.errors import DownloadError, ModelNotFound, RequestError
from edge.store.content import CHUNK, Wanted, look
from edge.store.home import room_for
from edge.store.records import Progress, Report
from edge.store.refs import is_loopback

if TYPE_CHECKING:
    import httpx2

    from edge.store.content import Remote

T = TypeVar("T")

PIECE = 1 << 16  # small, so that a dropped connection loses little
TRIES = 4  # in a row without a new byte
PAUSE = 0.5  # seconds, doubled each time
LONGEST_WAIT = 30.0  # seconds that a server may ask us to wait

RESUME = "run the same command again; it goes on where it stopped"


class Again(Exception):
    """This attempt failed in a way that the next may not. `wait`: seconds the server asked us to pause."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


def timeout() -> float:
    """Seconds without a byte after which a server counts as stalled: EDGE_TIMEOUT, else 30."""
    text = os.environ.get("EDGE_TIMEOUT", "30")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds <= 3600:
        raise RequestError(f"EDGE_TIMEOUT={text} is not a number of seconds", hint="set one from 1 to 3600")
    return seconds


def patiently(attempt: Callable[[], T], where: str, progress: Callable[[], int] = lambda: 0) -> T:
    """Call `attempt` until it returns, a few times at most; a try that got new bytes does not count.

    Raises DownloadError when patience ends or `where` stalls.
    """
    import httpx2

    failures, furthest = 0, progress()
    while True:
        try:
            return attempt()
        except httpx2.TimeoutException:
            raise DownloadError(
                f"{where} sent nothing for {timeout():g} s", hint=f"{RESUME} (EDGE_TIMEOUT sets the limit)"
            ) from None
        except (Again, httpx2.TransportError) as error:
            reason = str(error) or type(error).__name__
            wait = error.wait if isinstance(error, Again) else None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise DownloadError(f"{where}: {error}") from None
        if progress() > furthest:
            failures, furthest = 0, progress()
        failures += 1
        if failures >= TRIES or (wait or 0) > LONGEST_WAIT:
            asked = f" and asks to wait {wait:g} s" if wait else ""
            raise DownloadError(f"{where} failed: {reason}{asked}", hint=RESUME)
        time.sleep(PAUSE * 2 ** (failures - 1) if wait is None else wait)


def fetch(wanted: Wanted, remote: Remote, partial: Path, report: Report) -> str:
    """Bring a remote file into `partial`, on from what is there; returns its sha256.

    Raises DownloadError (dropped, stalled, refused, wrong length), ModelNotFound (404), UnsafeFile.
    """
    import httpx2

    first = httpx2.URL(remote.url)

    def no_plain_text(request: httpx2.Request) -> None:
        if request.url.scheme != "https" and not (
            is_loopback(request.url.host) or request.url.origin == first.origin
        ):
            raise DownloadError(f"{first.host} leads to {request.url.host} without encryption")

    with httpx2.Client(
        timeout=timeout(), follow_redirects=True, event_hooks={"request": [no_plain_text]}
    ) as client:
        return patiently(
            lambda: transfer(client, wanted, remote, partial, report), first.host, lambda: length(partial)
        )


def transfer(client: httpx2.Client, wanted: Wanted, remote: Remote, partial: Path, report: Report) -> str:
    """One attempt: ask for what is missing, append it, return the sha256 of the whole."""
    done = length(partial)
    if done and done == wanted.bytes:
        return hash_so_far(partial).hexdigest()
    headers = {**dict(remote.headers), "Accept-Encoding": "identity", **resume_headers(partial, wanted)}
    with client.stream("GET", remote.url, headers=headers) as response:
        if response.status_code == 416:
            discard(partial)
            raise Again("the server has less than was already here")
        accept(response, wanted, remote)
        if response.status_code == 206:
            if not response.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
                discard(partial)
                raise Again("the server went on from another place")
            running = hash_so_far(partial) if done else hashlib.sha256()
        else:
            discard(partial)
            done, running = 0, hashlib.sha256()
        pieces = response.iter_raw(PIECE)
        piece = next(pieces, b"")
        if not done:
            look(wanted.name, piece)
        total = announced(response, done)
        if wanted.bytes is not None and total not in (None, wanted.bytes):
            discard(partial)
            raise DownloadError(
                f"{response.url.host} offers {total:,} bytes of {wanted.name}; {wanted.bytes:,} were promised"
            )
        total = total if wanted.bytes is None else wanted.bytes
        room_for(partial.parent, (total or 0) - done)
        etag_of(partial).write_text(response.headers.get("ETag", ""), encoding="ascii", errors="ignore")
        with partial.open("ab") as file:
            while piece:
                done += len(piece)
                if total is not None and done > total:
                    raise DownloadError(f"{response.url.host} sends more than the {total:,} bytes promised")
                file.write(piece)
                running.update(piece)
                report(Progress("fetch", wanted.name, done, total))
                piece = next(pieces, b"")
            file.flush()
            os.fsync(file.fileno())
    if total is not None and done != total:
        raise Again(f"the connection ended after {done:,} of {total:,} bytes")
    return running.hexdigest()


def resume_headers(partial: Path, wanted: Wanted) -> dict[str, str]:
    """Ask for the rest, if it is certain to be the rest of the same file: by its ETag or the final hash."""
    done = length(partial)
    etag = etag_of(partial).read_text(encoding="ascii") if etag_of(partial).exists() else ""
    strong = etag.startswith('"')
    if not done or not (strong or wanted.sha256):
        return {}
    return {"Range": f"bytes={done}-", **({"If-Range": etag} if strong else {})}


def accept(response: httpx2.Response, wanted: Wanted, remote: Remote) -> None:
    """Raise unless the answer carries the file."""
    code, host = response.status_code, response.url.host
    if code in (200, 206):
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise DownloadError(f"{host} sends {wanted.name} re-encoded, so its bytes cannot be checked")
        return
    if code == 404:
        raise ModelNotFound(f"{host} has no {wanted.name}", hint="check the reference")
    if code in (401, 403):
        raise DownloadError(f"{host} refuses {wanted.name} (HTTP {code})", hint=remote.refused)
    if code == 429 or code >= 500:
        raise Again(f"HTTP {code}", retry_after(response))
    raise DownloadError(f"{host} answers HTTP {code} for {wanted.name}")


def retry_after(response: httpx2.Response) -> float | None:
    """The seconds a busy server asks for (its date form is treated as unstated)."""
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else None


def announced(response: httpx2.Response, done: int) -> int | None:
    """The length of the whole file, when the server says it."""
    if match := re.search(r"/(\d+)$", response.headers.get("Content-Range", "")):
        return int(match[1])
    rest = response.headers.get("Content-Length", "")
    return done + int(rest) if rest.isdecimal() else None


def hash_so_far(partial: Path) -> hashlib._Hash:
    running = hashlib.sha256()
    with partial.open("rb") as file:
        while piece := file.read(CHUNK):
            running.update(piece)
    return running


def length(partial: Path) -> int:
    return partial.stat().st_size if partial.exists() else 0


def etag_of(partial: Path) -> Path:
    return partial.with_name(partial.name + ".etag")


def discard(partial: Path) -> None:
    """Forget a download that cannot be resumed."""
    partial.unlink(missing_ok=True)
    etag_of(partial).unlink(missing_ok=True)
