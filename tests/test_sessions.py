"""Saved conversations: what is written is read back, by any process, and foreign files are left alone."""

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from edge.chat.export import to_json, to_markdown, write_whole
from edge.chat.sessions import Conversation, Sessions
from edge.chat.template import Message
from edge.cli import VERBS
from edge.cli.sessions import command, names
from edge.errors import RequestError, SessionError, StoreError


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "sessions.db"


def talk(path: Path, name: str = "kyoto") -> Conversation:
    with Sessions(path) as sessions:
        session = sessions.create(name, "smollm2", system="Be brief.", options={"temp": 0.5})
        sessions.append(session, "user", "Where to eat?")
        sessions.append(session, "assistant", "Nishiki", tokens=3, finish_reason="interrupted")
        return sessions.conversation(name)


def test_what_is_written_is_read_back_after_reopening(path: Path) -> None:
    written = talk(path)
    with Sessions(path) as sessions:
        assert sessions.conversation("kyoto") == written
        assert sessions.latest() == written.session
    assert (written.session.turns, written.session.options) == (1, {"temp": 0.5})
    assert written.messages[1].tokens == 3
    assert written.messages[1].finish_reason == "interrupted"
    assert written.prompt()[0] == Message("system", "Be brief.")


def test_latest_is_the_one_used_last(path: Path) -> None:
    talk(path, "first")
    talk(path, "second")
    with Sessions(path) as sessions:
        sessions.append(sessions.get("first"), "user", "more")
        assert [item.name for item in sessions.all()] == ["first", "second"]


def test_rename_and_remove(path: Path) -> None:
    talk(path)
    talk(path, "other")
    with Sessions(path) as sessions:
        with pytest.raises(RequestError, match="already"):
            sessions.rename("kyoto", "other")
        sessions.rename("kyoto", "旅")
        gone = sessions.get("旅")
        sessions.remove("旅")
        with pytest.raises(SessionError, match="no session named"):
            sessions.get("旅")
        with pytest.raises(SessionError, match="was removed"):
            sessions.append(gone, "user", "still there?")
    db = sqlite3.connect(path)
    assert db.execute("SELECT count(*) FROM message").fetchone() == (2,)  # the messages went with it
    db.close()


@pytest.mark.parametrize("name", ["", " a", "a\n", "x" * 101, "\x1b[31m"])
def test_names_that_cannot_be(path: Path, name: str) -> None:
    with Sessions(path) as sessions, pytest.raises(RequestError, match="cannot be"):
        sessions.create(name, "m")


def test_taken_name(path: Path) -> None:
    talk(path)
    with Sessions(path) as sessions, pytest.raises(RequestError, match="already"):
        sessions.create("kyoto", "m")


def test_processes_write_at_once_and_lose_nothing(path: Path) -> None:
    program = """if True:
        import sys
        from pathlib import Path
        from edge.chat.sessions import Sessions
        from edge.errors import RequestError
        with Sessions(Path(sys.argv[1])) as sessions:
            try:
                session = sessions.create("shared", "m")
            except RequestError:
                session = sessions.get("shared")
            for index in range(50):
                sessions.append(session, "user", f"{sys.argv[2]} {index}")
    """
    writers = [subprocess.Popen([sys.executable, "-c", program, str(path), str(who)]) for who in range(4)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0, 0]
    with Sessions(path) as sessions:
        contents = [message.content for message in sessions.conversation("shared").messages]
    assert len(contents) == 200
    for who in range(4):
        assert [text for text in contents if text.startswith(f"{who} ")] == [f"{who} {i}" for i in range(50)]


def make_text(path: Path) -> None:
    path.write_text("Dear diary, " * 1000)


def make_foreign(path: Path) -> None:
    db = sqlite3.connect(path)
    db.executescript("CREATE TABLE bookmark (url TEXT); PRAGMA user_version = 1;")
    db.close()


def make_newer(path: Path) -> None:
    talk(path)
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()


def make_torn(path: Path) -> None:
    talk(path)
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\xff" * (len(data) - 4096))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (make_text, "damaged or no file of sessions"),
        (make_foreign, "belongs to another program"),
        (make_newer, "newer edge"),
        (make_torn, "damaged"),
    ],
)
def test_a_file_that_is_not_ours_is_named_and_left_alone(path: Path, make, words: str) -> None:
    path.parent.mkdir()
    make(path)
    before = path.read_bytes()
    with pytest.raises(SessionError, match=words) as caught, Sessions(path) as sessions:
        sessions.all()
    assert str(path) in caught.value.line
    assert path.read_bytes() == before


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        Sessions(tmp_path / "file" / "sessions.db")
    with pytest.raises(StoreError, match="unable to open"):
        Sessions(tmp_path)


def test_full_disk(path: Path) -> None:
    with Sessions(path) as sessions:
        session = sessions.create("kyoto", "m")
        sessions._db.execute("PRAGMA max_page_count = 1")  # the room SQLite may use; as a full disk does
        with pytest.raises(StoreError, match="full"):
            sessions.append(session, "user", "x" * 100_000)
        sessions._db.execute("PRAGMA max_page_count = 100000")
        sessions.append(session, "user", "y")
        assert [message.content for message in sessions.conversation("kyoto").messages] == ["y"]


def test_export(path: Path, tmp_path: Path) -> None:
    conversation = talk(path)
    assert to_markdown(conversation).endswith(
        "## System\n\nBe brief.\n\n## You\n\nWhere to eat?\n\n## Assistant\n\nNishiki\n\n*(interrupted)*\n"
    )
    data = json.loads(to_json(conversation))
    assert (data["name"], data["options"]) == ("kyoto", {"temp": 0.5})
    assert [message["role"] for message in data["messages"]] == ["user", "assistant"]
    target = tmp_path / "talk.md"
    write_whole(target, "text")
    assert target.read_text() == "text"
    assert [item.name for item in tmp_path.iterdir() if item.name.endswith("md")] == ["talk.md"]
    with pytest.raises(StoreError):
        write_whole(tmp_path / "none" / "talk.md", "text")


def run(*args: str) -> tuple[str, str]:
    result = CliRunner().invoke(command, list(args), catch_exceptions=False, standalone_mode=False)
    return result.stdout, result.stderr


def test_verb(path: Path, tmp_path: Path) -> None:
    assert command.help == VERBS["sessions"]
    assert run("list") == ("", "no saved conversations; `edge chat` begins one\n")
    assert run("list", "--json")[0] == "[]\n"
    assert not path.exists()  # looking makes nothing
    talk(path)
    out = run("list")[0].splitlines()
    assert out[0].split() == ["NAME", "MODEL", "TURNS", "LAST", "USED"]
    assert out[1].split()[:3] == ["kyoto", "smollm2", "1"]
    assert json.loads(run("list", "--json")[0])[0]["turns"] == 1
    assert "Assistant  (interrupted)\nNishiki" in run("show", "kyoto")[0]
    assert json.loads(run("show", "kyoto", "--json")[0])["messages"][0]["content"] == "Where to eat?"
    assert run("export", "kyoto")[0].startswith("# kyoto\n")
    file = tmp_path / "out.json"
    assert run("export", "kyoto", "--format", "json", "--output", str(file)) == ("", f"wrote {file}\n")
    assert json.loads(file.read_text())["name"] == "kyoto"
    assert [item.value for item in names(None, None, "ky")] == ["kyoto"]
    assert run("rm", "kyoto") == ("", "removed kyoto\n")
    with pytest.raises(SessionError):
        run("show", "kyoto")


def test_what_is_said_is_readable_by_its_user_only(path: Path) -> None:
    with Sessions(path) as sessions:
        sessions.append(sessions.create("a", "m"), "user", "a secret")
        modes = {file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert modes == {0o600}


@pytest.mark.parametrize("verb", ["show", "rm", "export"])
def test_a_name_that_is_no_text_is_unknown(path: Path, verb: str) -> None:
    talk(path)
    result = CliRunner().invoke(command, [verb, "a\udcff"])
    assert isinstance(result.exception, SessionError)
    assert result.exception.line.startswith("there is no session named 'a\\udcff'")
