"""The command as a whole: help, exit codes, variables, streams, completion."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import click
import pytest
from click.shell_completion import ShellComplete

from edge.cli import VERBS, cli, run

EDGE = [sys.executable, "-m", "edge"]


def verb(name: str) -> click.Command:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    return command


def options(command: click.Command, path: str) -> list[tuple[str, click.Option]]:
    """Every option of a verb and of its inner verbs, with the words that lead to it."""
    found = [(path, option) for option in command.params if isinstance(option, click.Option)]
    for name, inner in getattr(command, "commands", {}).items():
        found += options(inner, f"{path} {name}")
    return found


def edge(*args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*EDGE, *args],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **variables},
    )


def test_help_names_every_verb_and_its_line(capsys):
    assert run(["--help"]) == 0
    out, err = capsys.readouterr()
    for name, line in VERBS.items():
        assert f"{name:<8}  {line}" in out
    assert not err


def test_version_is_the_installed_one(capsys):
    from importlib.metadata import version

    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"edge {version('edge-runtime')}\n"


@pytest.mark.parametrize("name", VERBS)
def test_each_verbs_help_begins_with_its_line(name, capsys):
    assert verb(name).help.splitlines()[0] == VERBS[name]
    assert run([name, "--help"]) == 0
    assert VERBS[name] in capsys.readouterr().out


@pytest.mark.parametrize("name", VERBS)
def test_every_option_has_help_and_the_variable_its_spelling_names(name):
    for path, option in options(verb(name), name):
        spelled = max(option.opts, key=len).lstrip("-").replace("-", "_")
        assert option.envvar == f"EDGE_{path.replace(' ', '_')}_{spelled}".upper()
        assert option.help


def test_variables_are_read(capsys, monkeypatch):
    monkeypatch.setenv("EDGE_LIST_JSON", "1")
    monkeypatch.setenv("EDGE_CHAT_TEMP", "nan")
    monkeypatch.setenv("EDGE_GENERATE_N", "65")
    assert run(["list"]) == 0
    assert json.loads(capsys.readouterr().out)["kept"] == []
    assert run(["chat", "--", "Hi"]) == 2
    assert "temperature is not a number" in capsys.readouterr().err
    assert run(["generate", "x.gguf", "Hi"]) == 2
    assert "65 is not in the range" in capsys.readouterr().err


def test_a_variable_that_is_nobodys_option_changes_nothing(capsys, monkeypatch):
    for name in ("EDGE_VERSION", "EDGE_HELP", "EDGE_CHAT_HELP", "EDGE_LIST_AS_JSON"):
        monkeypatch.setenv(name, "1")
    assert run(["list"]) == 0
    assert capsys.readouterr().out.startswith("Nothing is kept yet")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["nope"], "No such command 'nope'; see `edge --help`"),
        (["chat", "--nope"], "No such option"),
        (["chat", "--ctx", "many"], "'many' is not a number of tokens, and not auto"),
        (["plan"], "Missing argument 'REF...'; see `edge plan --help`"),
        (["generate", "x"], "Missing argument 'PROMPT'"),
        (["sessions", "nope"], "No such command 'nope'; see `edge sessions --help`"),
        (["bench", "speed", "x", "--vs", "ollama"], "'ollama' is no peer; one of"),
        (["\udcff"], "No such command"),
    ],
)
def test_a_wrong_call_is_one_line_and_2(args, says, capsys):
    assert run(args) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("edge: ")
    assert err.count("\n") == 1
    assert says in err


@pytest.mark.parametrize("args", [[], ["bench"], ["sessions"]])
def test_a_call_that_lacks_the_verb_shows_the_help(args, capsys):
    assert run(args) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith(f"Usage: {' '.join(['edge', *args])} [OPTIONS] COMMAND")


def test_a_traceback_when_asked_for(monkeypatch):
    from edge.errors import ModelNotFound

    assert run(["show", "nope.gguf"]) == 1
    monkeypatch.setenv("EDGE_TRACEBACK", "1")
    with pytest.raises(ModelNotFound):
        run(["show", "nope.gguf"])


def test_running_out_of_memory_is_one_line_and_4(monkeypatch, capsys):
    def full(ref: str) -> None:
        raise MemoryError

    monkeypatch.setattr("edge.cli.show.resolve", full)
    assert run(["show", "x.gguf"]) == 4
    assert capsys.readouterr().err.startswith("edge: out of memory; ")


def test_what_a_file_says_cannot_steer_the_terminal(capsys):
    from edge.cli import fail

    fail("the file says \x1b]0;owned\x07 and \x9b2J", 3)
    assert capsys.readouterr().err == "edge: the file says ]0;owned and 2J\n"


@pytest.mark.parametrize(
    ("redirection", "line"),
    [
        ("> /dev/full", "edge: the output cannot be written: No space left on device"),
        ("| true", "edge: the reader closed the pipe before the output was complete"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux'")
def test_an_output_that_cannot_be_written_is_one_line(redirection, line):
    # `true` may not have left yet when a short list is written, so the writer waits for it
    script = f'( sleep 0.3; exec "$0" -m edge list ) {redirection}; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", script, sys.executable], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, f"{line}\n")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_nobodys_fault(closed):
    script = f'"$0" -m edge list {closed}'
    done = subprocess.run(["sh", "-c", script, sys.executable], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_both_streams_into_a_pipe_that_closes():
    script = 'set -o pipefail; ( sleep 0.3; exec "$0" -m edge list ) 2>&1 | true'
    done = subprocess.run(["bash", "-c", script, sys.executable], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


def test_no_colours_outside_a_terminal():
    for args in (["--help"], ["list"], ["host"], ["sessions", "list"]):
        done = edge(*args)
        assert done.returncode == 0
        assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_gets_a_completion_script(shell):
    done = edge(_EDGE_COMPLETE=f"{shell}_source")
    assert done.returncode == 0
    assert "_EDGE_COMPLETE" in done.stdout


def test_words_complete(capsys):
    shell = ShellComplete(cli, {}, "edge", "_EDGE_COMPLETE")

    def completed(args: list[str], word: str) -> list[str]:
        return [item.value for item in shell.get_completions(args, word)]

    assert completed([], "s") == ["show", "sessions"]
    assert completed(["sessions"], "e") == ["export"]
    assert sorted(completed(["chat"], "--te")) == ["--temp", "--template"]
    for name in ("chat", "generate", "plan", "show", "pull"):
        assert completed([name], "smol") == ["smollm2-135m-instruct"]
    assert not capsys.readouterr().err


def test_bash_completes_a_reference():
    done = edge(_EDGE_COMPLETE="bash_complete", COMP_WORDS="edge chat smol", COMP_CWORD="2")
    assert done.stdout == "plain,smollm2-135m-instruct\n"
