"""Saved conversations in one SQLite file: each message is written as it happens.

Two processes may use the file at once: it is in WAL mode and every write is one IMMEDIATE transaction. A file
that is damaged or not ours is named in the error and never written to.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from edge.chat.template import Message, Role
from edge.errors import EdgeError, RequestError, SessionError, StoreError

APPLICATION_ID = 0x65646765  # "edge", in the SQLite header: tells our file from another program's
VERSION = 1
BUSY_SECONDS = 10.0
NAME_CHARACTERS = 100

ELSEWHERE = "set EDGE_HOME to a folder you may write to"
HINTS = {
    "database is locked": "another edge is writing; try again",
    "database or disk is full": "free some space",
    "attempt to write a readonly database": ELSEWHERE,
    "unable to open database file": ELSEWHERE,
}

SCHEMA = """
CREATE TABLE session (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    model TEXT NOT NULL,
    system TEXT NOT NULL,
    options TEXT NOT NULL,
    created REAL NOT NULL,
    updated REAL NOT NULL
);
CREATE TABLE message (
    id INTEGER PRIMARY KEY,
    session INTEGER NOT NULL REFERENCES session ON DELETE CASCADE,
    role TEXT NOT NULL,
    content TEXT NOT NULL,
    created REAL NOT NULL,
    tokens INTEGER,
    finish_reason TEXT
);
CREATE INDEX message_session ON message (session, id);
"""


@dataclass(frozen=True)
class SavedMessage:
    """One turn as it was saved.

    `created` is Unix time; `tokens` counts an answer's tokens, or is None where nobody counted;
    `finish_reason` says why an answer ended ("stop", "length", "interrupted"), None for other roles.
    """

    role: Role
    content: str
    created: float
    tokens: int | None = None
    finish_reason: str | None = None


@dataclass(frozen=True)
class Session:
    """A conversation: what it was last held with, when (Unix time), and how many messages of the user it has.

    `options` are the sampling settings that were given, by `Sampling`'s names, and where there are any: "lora", the
    adapters as `adapter_of` reads them; "context_policy"; "summary", what `edge.chat.policy.Summary` holds.
    """

    name: str
    model: str
    system: str
    options: Mapping[str, Any]
    created: float
    updated: float
    turns: int
    id: int = field(repr=False)


@dataclass(frozen=True)
class Conversation:
    """A session with its messages, in order."""

    session: Session
    messages: tuple[SavedMessage, ...]

    def prompt(self) -> list[Message]:
        """What to render: the system prompt, if there is one, and every message."""
        system = [Message("system", self.session.system)] if self.session.system else []
        return system + [Message(message.role, message.content) for message in self.messages]


class Sessions:
    """The open file of saved conversations; a context manager.

    Raises SessionError when the file is damaged, newer or not ours, StoreError when the disk refuses. With
    `create=False` a missing file is an empty one, and nothing is written.
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        self.path = path
        with translated(path):
            if create:
                path.parent.mkdir(parents=True, exist_ok=True)
                if not path.exists():  # what is said is nobody else's; SQLite's side files get this mode too
                    path.touch(mode=0o600)
            place = str(path) if create or path.exists() else ":memory:"
            self._db = sqlite3.connect(place, timeout=BUSY_SECONDS, isolation_level=None)
        try:
            with translated(path):
                self._prepare()
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> Sessions:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    def create(
        self, name: str, model: str, *, system: str = "", options: Mapping[str, Any] | None = None
    ) -> Session:
        """Begin a conversation; raises RequestError for a name that is taken or cannot be one."""
        now = time.time()
        values = (checked(name), model, system, json.dumps(dict(options or {})), now, now)
        with self._write() as db:
            if db.execute("SELECT 1 FROM session WHERE name = ?", (name,)).fetchone():
                raise RequestError(f"there is a session named {name!r} already", hint="choose another name")
            db.execute(
                "INSERT INTO session (name, model, system, options, created, updated)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                values,
            )
        return self.get(name)

    def append(
        self,
        session: Session,
        role: Role,
        content: str,
        *,
        tokens: int | None = None,
        finish_reason: str | None = None,
    ) -> SavedMessage:
        """Save one message; an interrupted answer as far as it got, with finish_reason "interrupted".

        Raises SessionError when the session was removed meanwhile.
        """
        message = SavedMessage(role, content, time.time(), tokens, finish_reason)
        self.extend(session, [message])
        return message

    def extend(self, session: Session, messages: Iterable[SavedMessage]) -> None:
        """Save messages all at once or, where the process ends meanwhile, none: no question without its answer.

        Raises SessionError when the session was removed meanwhile.
        """
        with self._write() as db:
            found(
                session, db.execute("UPDATE session SET updated = ? WHERE id = ?", (time.time(), session.id))
            )
            db.executemany(
                "INSERT INTO message (session, role, content, created, tokens, finish_reason)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                ((session.id, *astuple(message)) for message in messages),
            )

    def instruct(self, session: Session, system: str) -> None:
        """Change a session's system prompt; raises SessionError when it was removed meanwhile."""
        with self._write() as db:
            change = "UPDATE session SET system = ?, updated = ? WHERE id = ?"
            found(session, db.execute(change, (system, time.time(), session.id)))

    def settle(self, session: Session, model: str, options: Mapping[str, Any]) -> Session:
        """Write down what the session goes on with, where that has changed; SessionError when it was removed."""
        text = json.dumps(dict(options))
        if (model, json.loads(text)) == (session.model, session.options):
            return session
        with self._write() as db:
            change = "UPDATE session SET model = ?, options = ? WHERE id = ?"
            found(session, db.execute(change, (model, text, session.id)))
        return replace(session, model=model, options=json.loads(text))

    def all(self) -> list[Session]:
        """Every session, the last used first."""
        return self._select("ORDER BY updated DESC, id DESC")

    def latest(self) -> Session | None:
        """The session used last, for `--continue`."""
        return next(iter(self._select("ORDER BY updated DESC, id DESC LIMIT 1")), None)

    def get(self, name: str) -> Session:
        """The session of that name; raises SessionError when there is none."""
        # SQLite refuses what is not Unicode, and no session is named so
        for session in self._select("WHERE name = ?", name) if name.isprintable() else ():
            return session
        raise SessionError(f"there is no session named {name!r}", hint="`edge sessions list` names them")

    def conversation(self, name: str) -> Conversation:
        """The session of that name with its messages; raises SessionError when there is none."""
        session = self.get(name)
        with translated(self.path):
            rows = self._db.execute(
                "SELECT role, content, created, tokens, finish_reason FROM message"
                " WHERE session = ? ORDER BY id",
                (session.id,),
            ).fetchall()
        return Conversation(session, tuple(SavedMessage(*row) for row in rows))

    def rename(self, name: str, new: str) -> None:
        """Rename a session; raises SessionError for an unknown one, RequestError for an unusable new name."""
        checked(new)
        session = self.get(name)
        try:
            with self._write() as db:
                db.execute("UPDATE session SET name = ? WHERE id = ?", (new, session.id))
        except sqlite3.IntegrityError:
            raise RequestError(
                f"there is a session named {new!r} already", hint="choose another name"
            ) from None

    def remove(self, name: str) -> None:
        """Remove a session and its messages; raises SessionError when there is none."""
        session = self.get(name)
        with self._write() as db:
            db.execute("DELETE FROM session WHERE id = ?", (session.id,))

    def _select(self, clause: str, *values: str) -> list[Session]:
        with translated(self.path):
            rows = self._db.execute(
                "SELECT name, model, system, options, created, updated,"
                " (SELECT count(*) FROM message WHERE session = session.id AND role = 'user'), id"
                f" FROM session {clause}",
                values,
            ).fetchall()
            return [
                Session(name, model, system, json.loads(options), *rest)
                for name, model, system, options, *rest in rows
            ]

    def _prepare(self) -> None:
        """Set the connection up, and the schema in a file that holds nothing yet."""
        db = self._db
        # First: another process may write all of it at once between two of these questions
        empty = not db.execute("SELECT 1 FROM sqlite_master").fetchone()
        version, owner = (
            db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("user_version", "application_id")
        )
        fresh = not version and not owner and empty
        if not fresh and owner != APPLICATION_ID:
            raise SessionError(
                f"{self.path} belongs to another program", hint="set EDGE_HOME to another folder"
            )
        if version > VERSION:
            raise SessionError(f"{self.path} was written by a newer edge", hint="update edge-runtime")
        db.execute("PRAGMA foreign_keys = ON")
        if fresh:
            self._switch_to_wal()
            with self._write():
                # Another process may have been first.
                if not db.execute("PRAGMA user_version").fetchone()[0]:
                    for statement in filter(str.strip, SCHEMA.split(";")):
                        db.execute(statement)
                    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                    db.execute(f"PRAGMA user_version = {VERSION}")

    def _switch_to_wal(self) -> None:
        # SQLite does not wait here when two processes do this at once: the loser is told "locked" right away.
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """One transaction that holds the write lock from its start, so that what it reads stays true."""
        with translated(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")


def found(session: Session, update: sqlite3.Cursor) -> None:
    """Raise SessionError unless the update met a session."""
    if not update.rowcount:
        raise SessionError(f"the session {session.name!r} was removed", hint="begin a new one")


def checked(name: str) -> str:
    """The name, if it can be one: 1 to 100 printable characters, none of them at an end a space."""
    if not (0 < len(name) <= NAME_CHARACTERS and name.isprintable() and name == name.strip()):
        raise RequestError(
            f"{name[:NAME_CHARACTERS]!r} cannot be a session's name",
            hint=f"use 1 to {NAME_CHARACTERS} printable characters",
        )
    return name


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Errors of SQLite and of the disk as ours, in one line with the file's name."""
    try:
        yield
    except (EdgeError, sqlite3.IntegrityError):
        raise
    except sqlite3.OperationalError as error:
        raise StoreError(
            f"{path}: {error}", hint=HINTS.get(str(error), "check the disk and the folder")
        ) from error
    except (sqlite3.DatabaseError, json.JSONDecodeError) as error:
        raise SessionError(
            f"{path} is damaged or no file of sessions: {error}",
            hint="nothing was changed in it; move it away to begin anew",
        ) from error
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}", hint=ELSEWHERE) from error
