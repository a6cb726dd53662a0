"""edge batch: rows in, rows out, and a run that goes on after whatever ended it."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from tiny import tiny_llama

from edge.cli import run

FAILED = "edge: 2 of 40 rows could not be answered; their lines say why\n"
LIMITED = (
    "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)); "
    "from edge.cli import main; main(sys.argv[1:])"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory, one_core):
    return str(tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf"))


@pytest.fixture
def files(tmp_path):
    """An input of 40 rows of mixed fields, two of which cannot be answered, and the name of an output."""
    rows = [{"prompt": "in the " * (1 + at % 4), "max_tokens": 20 + at, "seed": at} for at in range(40)]
    rows[3] = {"messages": [{"role": "user", "content": "Hi"}], "temperature": 0, "max_tokens": 5}
    rows[7] = {"prompt": "a", "max_tokens": -1}
    lines = [json.dumps(row) for row in rows]
    lines[11] = "{"
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(lines) + "\n")
    return prompts, tmp_path / "out.jsonl"


@pytest.fixture
def batch(capsys, model):
    """Run `edge batch MODEL --parallel 4 …` and give back (code, stdout, stderr)."""

    def call(*args: object) -> tuple[int, str, str]:
        code = run(["batch", model, "--parallel", "4", "--ctx", "128", *map(str, args)])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def io(files):
    return ("--input", files[0], "--output", files[1])


def started(model, *args, limited=False, **pipes):
    command = [sys.executable, *(("-c", LIMITED) if limited else ("-m", "edge")), "batch", model]
    command += ["--parallel", "4", "--ctx", "128", *map(str, args)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, **pipes)


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_row_has_its_line_in_order(batch, files):
    code, out, err = batch(*io(files))
    rows = rows_of(files[1])
    assert (code, out) == (1, "")
    assert [row["index"] for row in rows] == [*range(40)]
    for at, row in enumerate(rows):
        if at in (7, 11):
            assert set(row) == {"index", "error"}
        else:
            assert set(row) == {"index", "text", "finish_reason", "usage"}
            assert set(row["usage"]) == {"prompt_tokens", "completion_tokens"}
    assert [rows[at]["usage"]["completion_tokens"] for at in (0, 3, 6)] == [20, 5, 26]
    assert err.startswith("40 rows · 2 errors · ")
    assert err.endswith(f" t/s\n{FAILED}")
    assert err.count("\n") == 2


def test_options_are_what_rows_leave_out(batch, tmp_path, monkeypatch):
    prompts, out = tmp_path / "p.jsonl", tmp_path / "out.jsonl"
    prompts.write_text('{"prompt": "the"}\n{"prompt": "the", "max_tokens": 3}\n')
    monkeypatch.setenv("EDGE_BATCH_TEMP", "0")
    assert batch("--input", prompts, "--output", out, "--max-tokens", 6)[0] == 0
    six, three = rows_of(out)
    assert [each["usage"]["completion_tokens"] for each in (six, three)] == [6, 3]
    assert six["text"].startswith(three["text"])


def test_how_many_at_a_time_is_chosen_and_said(capsys, model, files):
    assert run(["batch", model, "--ctx", "128", *map(str, io(files))]) == 1
    assert capsys.readouterr().err.startswith("parallel 8: with 128 tokens each it takes ")


def test_a_run_that_is_done_answers_nothing_anew(batch, files):
    batch(*io(files))
    before = files[1].read_bytes()
    code, _, err = batch(*io(files))
    assert (code, err) == (1, f"40 rows (40 were there) · 2 errors\n{FAILED}")
    assert files[1].read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_ended_goes_on_to_the_same_output(batch, model, files, tmp_path, number):
    prompts, out = files
    whole = tmp_path / "whole.jsonl"
    assert batch("--input", prompts, "--output", whole)[0] == 1
    with started(model, *io(files)) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (out.exists() and out.read_bytes().count(b"\n") > 2):
            time.sleep(0.002)
        process.send_signal(number)
        err = process.stderr.read().decode()
    written = out.read_bytes()
    there = written.count(b"\n")
    assert 2 < there < 40
    assert whole.read_bytes().startswith(written)
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert err.endswith(" rows are written; the same command goes on with them\nedge: interrupted\n")
    out.write_bytes(written + b'{"index": 9')
    code, _, err = batch(*io(files))
    assert code == 1
    assert err.startswith(f"40 rows ({there} were there) · ")
    assert err.endswith(FAILED)
    assert out.read_bytes() == whole.read_bytes()


def test_ctrl_c_in_a_terminal_leaves_the_bar_and_says_what_is_written_below_it(model, files):
    prompts, out = files
    prompts.write_text("".join(f'{{"prompt": "the", "seed": {at}, "max_tokens": 100}}\n' for at in range(99)))
    ours, theirs = pty.openpty()
    args = ["--parallel", "4", "--ctx", "128", *map(str, io(files))]
    seen = b""
    with subprocess.Popen(
        [sys.executable, "-m", "edge", "batch", model, *args],
        stderr=theirs,
        env=os.environ | {"TERM": "xterm"},
    ) as process:
        os.close(theirs)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (out.exists() and out.read_bytes().count(b"\n") > 2):
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        with suppress(OSError):  # it has ended, and nobody holds the other side
            while piece := os.read(ours, 1 << 16):
                seen += piece
    os.close(ours)
    assert process.returncode == 130
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    bar, written, interrupted, end = (line.strip("\r") for line in text.split("\n"))
    assert "prompts.jsonl" in bar
    assert re.fullmatch(r"\d+ rows are written; the same command goes on with them", written)
    assert (interrupted, end) == ("edge: interrupted", "")


def test_another_input_or_setting_is_refused(batch, files):
    batch(*io(files))
    before = files[1].read_bytes()
    code, _, err = batch(*io(files), "--temp", 0.5)
    assert (code, "begun with another temperature;" in err) == (2, True)
    code, _, err = batch(*io(files), "--parallel", 2)
    assert (code, err.endswith(FAILED)) == (1, True)
    files[0].write_text('{"prompt": "the"}\n')
    code, _, err = batch(*io(files))
    assert (code, "begun with another input;" in err, err.count("\n")) == (2, True, 1)
    assert files[1].read_bytes() == before


def test_files_that_cannot_be_used_are_refused(batch, files, tmp_path):
    prompts, out = files
    before = prompts.read_bytes()
    link = tmp_path / "link.jsonl"
    link.symlink_to(prompts)
    for args, said in (
        (("--input", prompts, "--output", prompts), "the output is the input"),
        (("--input", prompts, "--output", link), "the output is the input"),
        (("--input", prompts, "--output", tmp_path), "Is a directory"),
        (("--input", tmp_path, "--output", out), "Is a directory"),
        (("--input", tmp_path / "none", "--output", out), "No such file"),
        (("--input", prompts), "Missing option '--output'"),
        (("--output", out), "Missing option '--input'"),
        ((*io(files), "--parallel", 0), "--parallel"),
        ((*io(files), "--max-tokens", 0), "max-tokens is 0"),
    ):
        code, stdout, err = batch(*args)
        assert (code, stdout, err.count("\n")) == (2, "", 1), err
        assert said in err
    assert prompts.read_bytes() == before
    assert not out.exists()


def test_an_empty_input_is_an_empty_output(batch, files):
    files[0].write_text("\n")
    code, _, err = batch(*io(files))
    assert (code, err, files[1].read_bytes()) == (0, "0 rows\n", b"")


def test_a_full_disk_is_one_line_and_the_run_goes_on_after_it(batch, model, files, tmp_path):
    whole = tmp_path / "whole.jsonl"
    batch("--input", files[0], "--output", whole)
    assert whole.stat().st_size > 4000
    with started(model, *io(files), limited=True) as process:
        err = process.stderr.read().decode()
    assert process.returncode == 1
    assert err.startswith(f"edge: {files[1]} cannot be written: File too large; make room")
    assert err.count("\n") == 1
    assert files[1].read_bytes().endswith(b"\n")
    assert whole.read_bytes().startswith(files[1].read_bytes())
    assert batch(*io(files))[0] == 1
    assert files[1].read_bytes() == whole.read_bytes()


def test_stdin_is_answered_as_it_comes(model):
    with started(
        model, "--input", "-", "--output", "-", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        for at, sent in enumerate((b'{"prompt": "the", "max_tokens": 3}\n', b"{\n", b'{"prompt": "a"}\n')):
            process.stdin.write(sent)
            process.stdin.flush()
            row = json.loads(process.stdout.readline())
            assert (row["index"], "error" in row) == (at, at == 1)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err.decode().partition(" · ")[0]) == (1, "3 rows")


def test_stdin_has_a_new_output_or_none(model, files):
    args = ("--input", "-", "--output", files[1])
    for code, said in ((1, "40 rows"), (2, "stdin cannot be read again")):
        with files[0].open() as prompts, started(model, *args, stdin=prompts) as process:
            err = process.stderr.read().decode()
        assert process.returncode == code
        assert said in err
