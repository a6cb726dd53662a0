"""edge pull, list, rm and verify: exit codes, screens, JSON, completion."""

from __future__ import annotations

import hashlib
import json
import os
import sys

import click
import pytest
from click.shell_completion import ShellComplete
from fake_hub import gguf

from edge import store
from edge.cli import VERBS, cli, run


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.gguf"
    path.write_bytes(gguf(100_000))
    return path


@pytest.mark.parametrize("verb", ["pull", "list", "rm", "verify"])
def test_the_help_begins_with_the_verbs_line(verb):
    command = cli.get_command(click.Context(cli), verb)
    assert command.help.splitlines()[0] == VERBS[verb]


def test_pull_list_verify_rm(mine, capsys):
    assert run(["pull", str(mine), "--as", "pet"]) == 0
    out, err = capsys.readouterr()
    assert out == f"pet  98 KiB  {mine}\n"
    assert err.startswith(f"pulling {mine}\npet is here and whole")

    assert run(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["KEPT", "SIZE", "LICENCE", "WHERE"]
    assert lines[1].split() == ["pet", "98", "KiB", "not", "stated", str(mine)]
    assert lines[3].startswith("CAN BE PULLED")
    assert lines[4].startswith(store.DEFAULT)

    assert run(["verify"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["pet", "98", "KiB", "whole"]

    data = bytearray(mine.read_bytes())
    data[5_000] ^= 1
    mine.write_bytes(data)
    assert run(["verify", "pet"]) == 3
    out, err = capsys.readouterr()
    assert hashlib.sha256(data).hexdigest() in out
    assert err.splitlines()[-1].startswith("edge: damaged: pet; ")

    assert run(["rm", "pet"]) == 0
    assert capsys.readouterr().out == f"forgot pet; {mine} stays where it is\n"
    assert run(["rm", "pet"]) == 1
    assert capsys.readouterr().err.startswith("edge: there is no model 'pet'; ")


def test_an_empty_store(capsys):
    assert run(["list"]) == 0
    assert capsys.readouterr().out.startswith("Nothing is kept yet; `edge pull smollm2-135m-instruct`")
    assert run(["verify"]) == 0


def test_json(mine, capsys):
    assert run(["pull", str(mine), "--json"]) == 0
    pulled = json.loads(capsys.readouterr().out)
    assert (pulled["name"], pulled["path"], pulled["in_place"]) == ("mine", str(mine), True)
    assert run(["list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["kept"] == [pulled]
    assert listed["catalogue"][0]["name"] == store.DEFAULT
    assert run(["verify", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"name": "mine", "ok": True, "problems": [], "certificate": None}
    ]
    mine.write_bytes(b"")
    assert run(["verify", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)[0]["ok"] is False
    assert run(["rm", "mine", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "mine"


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["pull"], 2, "REF"),
        (["pull", "hf:../x"], 2, "not a hub reference"),
        (["pull", "x.gguf", "--as", "../x"], 2, "not a model name"),
        (["pull", "model.bin"], 3, "safetensors"),
        (["pull", "nope.gguf"], 1, "there is no file"),
        (["pull", "smollm2"], 1, "did you mean smollm2-135m-instruct?"),
        (["verify", "gone"], 1, "there is no model"),
    ],
)
def test_errors_are_one_line(args, code, says, capsys):
    assert run(args) == code
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("edge: ")
    assert says in line


def test_a_kept_model_whose_file_went_away_is_marked(mine, capsys):
    run(["pull", str(mine)])
    mine.unlink()
    run(["list"])
    assert f"{mine} (missing)" in capsys.readouterr().out


def test_references_complete(mine, home):
    store.pull(str(mine), name="smiling")
    shell = ShellComplete(cli, {}, "edge", "_EDGE_COMPLETE")
    for verb in ("pull", "rm", "verify"):
        assert [item.value for item in shell.get_completions([verb], "sm")] == ["smiling", store.DEFAULT]
    (home / "models" / "smiling" / "model.json").write_text("{")
    assert [item.value for item in shell.get_completions(["rm"], "sm")] == [store.DEFAULT]


def test_a_terminal_gets_a_bar(mine, home):
    pexpect = pytest.importorskip("pexpect", reason="needs pexpect for a pseudo-terminal")

    child = pexpect.spawn(
        sys.executable, ["-m", "edge", "pull", str(mine)], env={**os.environ, "TERM": "xterm"}
    )
    child.expect("checking mine.gguf")
    child.expect("is here and whole")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
