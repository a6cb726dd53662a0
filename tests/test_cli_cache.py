"""edge cache list and clear: what they show, what they free, and what they do not tell."""

import json
import os

import click
import numpy as np
import pytest
from tiny import tiny_llama

from edge.cli import VERBS, cli, run
from edge.engine.disk import DiskCache
from edge.engine.state_key import StateKey, model_digest
from edge.home import states_folder


@pytest.fixture
def cache(home):
    """A function that keeps `count` tokens of a model called `name`."""

    def keep(name, count, digest="ab" * 32, used=None):
        key = StateKey(name, digest, "llama.cpp-cpu", "f16", True, 1)
        cache = DiskCache(states_folder(), key, budget=10**7)
        cache.write([*range(100, 100 + count)], np.zeros(1024 * count, np.uint8))
        path = cache.longest([100]).path
        if used:
            os.utime(path, (used, used))
        return path

    return keep


def test_the_help_begins_with_the_verbs_line():
    command = cli.get_command(click.Context(cli), "cache")
    assert command.help.splitlines()[0] == VERBS["cache"]


def test_nothing_is_kept_yet(capsys, home):
    assert run(["cache", "list"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("no kept prefixes; ")
    assert run(["cache", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert run(["cache", "clear"]) == 0
    assert capsys.readouterr().out == "removed 0 kept prefixes, 0 B freed\n"
    assert not home.exists()


def test_the_last_used_comes_first(cache, capsys):
    cache("pet", 10, used=1_000_000)
    cache("other", 2000, "cd" * 32, used=2_000_000)
    assert run(["cache", "list"]) == 0
    out, err = capsys.readouterr()
    head, *lines = (line.split() for line in out.splitlines())
    assert head == ["MODEL", "TOKENS", "SIZE", "LAST", "USED"]
    assert [line[:4] for line in lines] == [["other", "2,000", "2.0", "MiB"], ["pet", "10", "10", "KiB"]]
    assert all(line[4].startswith("1970-01-") for line in lines)
    assert err == f"2.0 MiB in {states_folder()}\n"

    assert run(["cache", "list", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["model"], first["digest"], first["tokens"], first["used"]) == (
        "other",
        "cd" * 32,
        2000,
        2e6,
    )
    assert second["bytes"] == os.stat(second["path"]).st_size  # noqa: PTH116


def test_clear(cache, capsys):
    for count in (10, 20):
        cache("pet", count)
    cache("other", 30, "cd" * 32)
    assert run(["cache", "clear", "--model", "pet"]) == 0
    assert capsys.readouterr().out == "removed 2 kept prefixes, 30 KiB freed\n"
    assert run(["cache", "clear", "--json"]) == 0
    cleared = json.loads(capsys.readouterr().out)
    assert cleared["removed"] == 1
    assert cleared["bytes"] > 30 * 1024
    assert [*states_folder().iterdir()] == []


def test_clear_by_a_file_of_another_name(cache, capsys, tmp_path):
    model = tiny_llama(tmp_path / "tiny.gguf")
    cache("pet", 10, model_digest(model))
    cache("other", 10)
    assert run(["cache", "clear", "--model", str(model)]) == 0
    assert capsys.readouterr().out.startswith("removed 1 kept prefix, ")
    assert len([*states_folder().iterdir()]) == 1


def test_clear_of_no_model(cache, capsys):
    path = cache("pet", 10)
    assert run(["cache", "clear", "--model", "nobody"]) == 1
    assert capsys.readouterr().err.startswith("edge: there is no model 'nobody'")
    assert path.exists()


def test_damaged_files_are_counted_and_cleared(cache, capsys):
    path = cache("pet", 10)
    path.write_bytes(b"edge")
    (path.with_name(f"{'0' * 32}-{'0' * 32}.state")).mkdir()
    assert run(["cache", "list"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[1] == "2 files there are damaged or not ours, and never used"
    assert run(["cache", "clear"]) == 0
    assert capsys.readouterr().out == "removed 1 kept prefix, 4 B freed\n"


def test_a_name_cannot_steer_the_terminal(cache, capsys):
    cache("pet\x1b[2J", 10)
    assert run(["cache", "list"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_a_folder_that_is_none(cache, capsys, home):
    home.mkdir()
    (home / "cache").write_text("")
    for verb in ("list", "clear"):
        assert run(["cache", verb]) == 1
        assert capsys.readouterr().err.startswith("edge: cannot use ")
