"""Text files that a request names."""

from __future__ import annotations

from pathlib import Path

from edge.errors import RequestError


def read_text(path: Path, what: str, most: int) -> str:
    """A UTF-8 file of at most `most` bytes. Raises RequestError, which calls it the `what` file."""
    try:
        if not path.is_file():  # a folder, or a pipe that would be waited for
            kind = "a folder" if path.is_dir() else "no file" if path.exists() else "not there"
            raise RequestError(f"the {what} file {str(path)!r:.200} is {kind}", hint="check the path")
        with path.open("rb") as file:
            data = file.read(most + 1)
    except (OSError, ValueError) as error:  # ValueError: a path that holds a NUL
        why = getattr(error, "strerror", None) or error
        raise RequestError(
            f"the {what} file {str(path)!r:.200} cannot be read: {why}", hint="check the path"
        ) from None
    if len(data) > most:
        raise RequestError(
            f"the {what} file {str(path)!r:.200} is larger than {most >> 20} MiB", hint="use a smaller one"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"the {what} file {str(path)!r:.200} is not UTF-8 at byte {error.start}", hint="save it as UTF-8"
        ) from None
