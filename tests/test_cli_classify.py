"""edge classify: what comes out for one text and for many, in which form, and what is refused in one line."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import termios
import time

import pexpect
import pytest
import tiny_classifiers

from edge.cli import run

EDGE = [sys.executable, "-m", "edge"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tiny_classifiers.feelings(folder / "feelings")
    tiny_classifiers.feelings(folder / "topics", "multi_label_classification")
    tiny_classifiers.feelings(folder / "stars", "regression", ["stars"])
    tiny_classifiers.names(folder / "names")
    return folder


@pytest.fixture
def classify(models, capfd):
    """Run `edge classify MODEL …` and give back (code, stdout, stderr)."""

    def call(model, *args):
        code = run(["classify", str(models / model), *map(str, args)])
        return code, *capfd.readouterr()

    return call


@pytest.fixture
def data(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_text(content)
        return path

    return write


def test_one_text_is_a_table_of_its_labels(classify):
    code, out, err = classify("feelings", "so good", "--top", "2")
    assert (code, err) == (0, "")
    assert re.fullmatch(r"LABEL +PROBABILITY\npositive +0\.8\d\d\d\nneutral +0\.\d{4}\n", out)


def test_one_text_as_json_has_exactly_the_promised_keys(classify):
    row = json.loads(classify("feelings", "so good", "--json")[1])
    assert [*row] == ["text", "label", "probability", "labels"]
    assert [*row["labels"][0]] == ["label", "probability"]
    assert (row["text"], row["label"], len(row["labels"])) == ("so good", "positive", 3)
    row = json.loads(classify("names", "Ada in New York", "--json")[1])
    assert [*row] == ["text", "entities"]
    assert [*row["entities"][0]] == ["label", "text", "start", "end", "probability"]
    assert json.loads(classify("stars", "bad", "--json")[1]) == {"text": "bad", "value": 3.0}
    assert json.loads(classify("feelings", "good", "--pair", "bad", "--json")[1])["pair"] == "bad"


def test_entities_of_one_text_are_a_table(classify):
    out = classify("names", "Ada in New York")[1]
    assert re.search(
        r"LABEL +TEXT +START +END +PROBABILITY\nPER +Ada +0 +3 +0\.\d{4}\nLOC +New York +7 +15 ", out
    )
    assert classify("names", "in")[1] == "no entities\n"


def test_a_text_below_the_threshold_is_shown_without_a_label(classify, data):
    one = classify("feelings", "so good", "--threshold", "0.99")[1]
    assert re.match(r"no label reaches the threshold:\nLABEL +PROBABILITY\npositive +0\.8", one)
    many = classify("feelings", "--input", data("in.txt", "so good\n"), "--threshold", "0.99")[1]
    assert re.fullmatch(r"- +so good\n", many)


def test_rows_are_lines_in_their_order(classify, data):
    path = data("in.txt", "good\n\nso bad \x07 so\n")
    code, out, err = classify("feelings", "--input", path)
    lines = out.split("\n")
    assert code == 0
    assert [line.split()[0] for line in lines[:3]] == ["positive", "-", "negative"]
    assert lines[2].endswith("  so bad  so")
    assert err == "1 blank text has no answer\n"


def test_rows_as_json_lines_and_csv(classify, data):
    path = data("in.csv", 'id,text\n1,"good, ""so"" good"\n2," "\n3,"bad\nbad"\n4,"bad\rbad"\n')
    rows = [json.loads(line) for line in classify("feelings", "--input", path, "--json")[1].splitlines()]
    assert [row["label"] for row in rows] == ["positive", None, "negative", "negative"]
    assert rows[1] == {"text": " ", "label": None, "probability": None, "labels": []}
    out = classify("feelings", "--input", path, "--csv")[1]
    records = list(csv.DictReader(io.StringIO(out, newline="")))
    assert [record["row"] for record in records] == ["1", "2", "3", "4"]
    assert [record["text"] for record in records] == [row["text"] for row in rows]
    assert [record["label"] for record in records] == ["positive", "", "negative", "negative"]
    assert float(records[0]["probability"]) == rows[0]["probability"]


def test_entities_as_csv_carry_their_row(classify, data):
    out = classify("names", "--input", data("in.txt", "Ada\nin\nNew York , Byron\n"), "--csv")[1]
    records = list(csv.DictReader(io.StringIO(out)))
    assert [(record["row"], record["label"], record["text"]) for record in records] == [
        ("1", "PER", "Ada"), ("3", "LOC", "New York"), ("3", "PER", "Byron"),
    ]  # fmt: skip
    assert classify("names", "--input", data("in.txt", "Ada in\n"))[1] == "[PER Ada] in\n"


def test_many_labels_stand_in_one_field_that_reads_back(classify, data):
    path = data("in.txt", "so good\nbad\n")
    out = classify("topics", "--input", path, "--csv", "--threshold", "0.6")[1]
    assert [record["label"] for record in csv.DictReader(io.StringIO(out, newline=""))] == [
        "positive,neutral",
        "negative",
    ]
    labelled = data("out.csv", out)
    code, out, _ = classify("topics", "--input", labelled, "--report", "--threshold", "0.6")
    assert code == 0
    assert "accuracy 1.0000 of 2 texts" in out


def test_truncation_is_said(classify):
    code, out, err = classify("feelings", "good " * 30, "--json")
    assert (code, json.loads(out)["left_out"]) == (0, 20)
    assert err == "1 text is longer than 12 tokens: 20 at the end were not read (--long split reads them)\n"
    code, out, err = classify("feelings", "good " * 30, "--json", "--long", "split")
    assert (code, err) == (0, "")
    assert "left_out" not in json.loads(out)


LABELLED = "text,label\nso good,positive\nbad,negative\nbad,neutral\n"


def test_the_report_is_printed_in_place_of_the_rows(classify, data):
    path = data("in.csv", LABELLED)
    code, out, err = classify("feelings", "--input", path, "--report")
    assert (code, err) == (0, "")
    assert re.search(r"negative +0\.5000 +1\.0000 +0\.6667 +1\n", out)
    assert "accuracy 0.6667 of 3 texts" in out
    report = json.loads(classify("feelings", "--input", path, "--report", "--json")[1])
    assert report["labels"]["negative"] == {"precision": 0.5, "recall": 1.0, "f1": 2 / 3, "support": 1}
    assert report["confusion"] == {
        "names": ["negative", "neutral", "positive"],
        "matrix": [[1, 0, 0], [1, 0, 0], [0, 0, 1]],
    }


def test_the_report_of_entities(classify, data):
    path = data("gold.txt", "Ada I-PER\nin O\nNew I-LOC\nYork I-LOC\n\nByron I-LOC\n")
    code, out, _ = classify("names", "--input", path, "--format", "conll", "--report")
    assert code == 0
    assert re.search(r"LOC +1\.0000 +0\.5000 +0\.6667 +2\n", out)


def test_a_wide_confusion_matrix_is_a_list_of_the_most_frequent(tmp_path, data, capfd):
    model = tiny_classifiers.feelings(tmp_path / "wide", labels=[letter * 40 for letter in "abc"])
    labels = dict.fromkeys(["good", "bad"], "a" * 40)
    path = data("in.csv", "text,label\n" + "".join(f"{text},{label}\n" for text, label in labels.items()))
    assert run(["classify", str(model), "--input", str(path), "--report"]) == 0
    out = capfd.readouterr()[0]
    assert "most often confused (--plot draws the whole matrix" in out
    assert re.search(r"IN THE DATA +PREDICTED +COUNT\naaaa+ +cccc+ +1\n", out)


def test_words_with_tags_are_for_models_of_entities(classify, data):
    code, _, err = classify("feelings", "--input", data("in.conll", "good B-X\nbad O\n"), "--report")
    assert (code, "are for models of entities, and feelings labels whole texts" in err) == (2, True)


def test_a_plot_is_refused_before_the_model_is_looked_for(capfd, data):
    code = run(["classify", "./nowhere", "--input", str(data("in.csv", LABELLED)), "--plot", "q.jpg"])
    assert (code, "q.jpg is no name of a PNG file" in capfd.readouterr()[1]) == (2, True)


def test_the_plot_is_a_picture(classify, data, tmp_path):
    picture = tmp_path / "m.png"
    code, out, _ = classify("feelings", "--input", data("in.csv", LABELLED), "--plot", picture)
    assert code == 0
    assert "accuracy" in out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_plot_shows_any_label_and_name_as_it_is(models, data, tmp_path, capfd):
    model = tiny_classifiers.feelings(tmp_path / "$\\frac$", labels=["$\\frac$", "中", "positive"])
    path = data("$\\x$.csv", "text,label\nbad,$\\frac$\ngood,positive\n")
    code = run(["classify", str(model), "--input", str(path), "--plot", str(tmp_path / "m.png")])
    assert (code, capfd.readouterr().err) == (0, "")


def test_options_that_would_change_nothing_in_a_report_of_entities_are_refused(classify, data):
    path = data("gold.conll", "Ada I-PER\n")
    for option in (("--threshold", "0.9"), ("--long", "split")):
        code, out, err = classify("names", "--input", path, "--report", *option)
        assert (code, out, "leave --threshold and --long split out" in err) == (2, "", True)


def test_a_plot_without_matplotlib_says_how_to_get_it(classify, data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, err = classify("feelings", "--input", data("in.csv", LABELLED), "--plot", tmp_path / "m.png")
    assert (code, out) == (2, "")
    assert "pip install 'edge-runtime[plot]'" in err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([""], "the text is empty"),
        (["  \n"], "the text is empty"),
        (["\udcff"], "the text is no UTF-8"),
        (["good", "--pair", " "], "the second text is empty"),
        (["good", "--input", "x"], "--input is for many texts"),
        (["good", "--report"], "--report is for many texts"),
        (["--input", "in.csv", "--pair", "x"], "--pair belongs to a TEXT"),
        (["--input", "nothing.csv"], "nothing.csv cannot be read: No such file"),
        (["--input", "in.csv", "--csv", "--report"], "--csv is for rows"),
        (
            ["--input", "in.csv", "--report", "--label-field", "gold"],
            "has no field gold; its fields are text, label",
        ),
        (["--input", "odd.csv", "--report"], "line 66 has the label angry, which the model lacks"),
        (["--input", "odd.csv", "--text-field", "body"], "has no field body"),
        (["--input", "ragged.csv"], "line 70 has 1 column and the header 2"),
        (["--input", "latin.txt"], "line 2 is no UTF-8"),
        (["--input", "empty.txt"], "empty.txt has no rows"),
        (["--input", "in.csv", "--labels", "angry"], "has no label angry; its labels are negative"),
        (["--input", "in.csv", "--plot", "m.pdf"], "m.pdf is no name of a PNG file"),
        (["--input", "in.csv", "--plot", "no/m.png"], "there is no folder no"),
        (["--input", "in.csv", "--examples", "in.csv"], "has learnt its labels"),
        (["good", "--threshold", "2"], "Invalid value for '--threshold'"),
        (["good", "--backend", "gguf"], "not as GGUF"),
    ],
)
def test_what_is_refused_in_one_line(classify, data, tmp_path, monkeypatch, args, said):
    monkeypatch.chdir(tmp_path)
    data("in.csv", LABELLED)
    data("odd.csv", "text,label\n" + "good,positive\n" * 64 + "so,angry\n")
    data("ragged.csv", "text,label\n" + "good,positive\n" * 68 + "so\n")
    data("empty.txt", "")
    (tmp_path / "latin.txt").write_bytes(b"good\ncaf\xe9\n")
    code, _, err = classify("feelings", *args)
    assert code == 2
    assert err.count("\n") == 1
    assert said in err


def test_rows_before_a_bad_line_come_out(classify, data):
    path = data("in.csv", "text,label\n" + "good,x\n" * 100 + "ragged\n")
    code, out, err = classify("feelings", "--input", path, "--json")
    assert code == 2
    assert len(out.splitlines()) == 100
    assert "line 102 has 1 column" in err


def started(models, *args, stdout):
    command = [*EDGE, "classify", str(models / "feelings"), *args]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stdout, stderr=subprocess.PIPE)


def test_stdin_is_answered_line_by_line(models):
    with started(models, "--json", stdout=subprocess.PIPE) as process:
        for text in (b"good", b"bad"):
            process.stdin.write(text + b"\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["text"] == text.decode()
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_leaves_complete_lines(models, tmp_path, number):
    out = tmp_path / "out.jsonl"
    with out.open("wb") as file, started(models, "--json", stdout=file) as process:
        deadline = time.monotonic() + 60
        while out.stat().st_size < 20_000 and time.monotonic() < deadline:
            process.stdin.write((b"so good " * 9 + b"\n") * 20)
            process.stdin.flush()
        process.send_signal(number)
        err = process.stderr.read().decode()
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert err == ("edge: interrupted\n" if number == signal.SIGINT else "")
    written = out.read_bytes()
    assert len(written) >= 20_000
    assert written.endswith(b"\n")
    for line in written.splitlines():
        assert json.loads(line)["label"] == "positive"


def test_an_interrupted_run_does_not_wait_for_the_next_line(models):
    with started(models, "--json", stdout=subprocess.PIPE) as process:
        process.stdin.write(b"good\n")
        process.stdin.flush()
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(timeout=10) == 130  # stdin is still open
        finally:
            process.kill()


def test_an_interrupted_run_writes_no_line_twice_for_a_slow_reader(models, tmp_path):
    path = tmp_path / "many.txt"
    path.write_text("".join(f"so good {at}\n" for at in range(6000)))
    with started(models, "--input", str(path), "--json", stdout=subprocess.PIPE) as process:
        deadline, waiting = time.monotonic() + 60, struct.pack("i", 0)
        while time.monotonic() < deadline:  # until the pipe is full and a line is under way
            time.sleep(0.5)
            before, waiting = waiting, fcntl.ioctl(process.stdout, termios.FIONREAD, struct.pack("i", 0))
            if before == waiting != struct.pack("i", 0):
                break
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        written = process.stdout.read()
        assert process.wait(timeout=60) == 130
    assert written.endswith(b"\n")
    found = [json.loads(line)["text"] for line in written.splitlines()]
    assert found == [f"so good {at}" for at in range(len(found))]
    assert found


def test_a_reader_that_leaves_ends_the_run(models, tmp_path):
    path = tmp_path / "many.txt"
    path.write_text("so good\n" * 20_000)
    with started(models, "--input", str(path), stdout=subprocess.PIPE) as process:
        assert process.stdout.readline().startswith(b"positive")
        process.stdout.close()
        err = process.stderr.read().decode()
    assert process.returncode == 1
    assert err == "edge: the reader closed the pipe before the output was complete\n"


def test_a_terminal_sees_a_bar_and_lines_cut_to_its_width(models, tmp_path):
    path = tmp_path / "in.txt"
    path.write_text("so good and long " * 20 + "\n")
    here = {**os.environ, "TERM": "xterm", "COLUMNS": "60", "LINES": "24"}
    command = f"-m edge classify {models / 'feelings'} --input {path}"
    shown = pexpect.spawn(
        sys.executable, command.split(), env=here, dimensions=(24, 60), timeout=60, encoding="utf-8"
    )
    shown.expect(pexpect.EOF)
    (line,) = (
        line
        for line in shown.before.splitlines()
        if line.startswith("neutral") or line.startswith("positive")
    )
    assert len(line) == 60
    assert line.endswith("…")
    labelled = tmp_path / "in.csv"
    labelled.write_text("text,label\n" + "so good,positive\n" * 3000)
    command = f"-m edge classify {models / 'feelings'} --input {labelled} --report"
    shown = pexpect.spawn(
        sys.executable, command.split(), env=here, dimensions=(24, 60), timeout=60, encoding="utf-8"
    )
    shown.expect("in.csv.*100%")
    shown.expect("accuracy 1.0000 of 3,000 texts")


def test_a_chat_model_needs_labels(capfd, tmp_path):
    from tiny import tiny_llama

    model = tiny_llama(tmp_path / "tiny.gguf")
    code = run(["classify", str(model), "good"])
    assert (code, "name them: --labels" in capfd.readouterr()[1]) == (2, True)
    code = run(["classify", str(model), "good", "--labels", "good,bad", "--json"])
    row = json.loads(capfd.readouterr()[0])
    assert code == 0
    assert {each["label"] for each in row["labels"]} == {"good", "bad"}
    assert sum(each["probability"] for each in row["labels"]) == pytest.approx(1)


def test_numbers_are_no_positions_among_labels_given_to_a_chat_model(capfd, tmp_path, data):
    from tiny import tiny_llama

    model, path = tiny_llama(tmp_path / "tiny.gguf"), data("in.csv", "text,label\ngood,1\n")
    code = run(["classify", str(model), "--input", str(path), "--labels", "good,bad", "--report"])
    err = capfd.readouterr()[1]
    assert (code, "line 2 has the label 1, a number, and --labels gives names: good, bad" in err) == (2, True)


def test_labels_from_an_onnx_chat_model_need_its_gguf_form(capfd, tmp_path):
    import tiny_checkpoints

    from edge.convert.onnx import to_onnx

    (made,) = to_onnx.convert(tiny_checkpoints.write("llama-tied", tmp_path / "tiny"), ["fp32"], tmp_path)
    assert run(["classify", str(made.path), "good", "--labels", "good,bad"]) == 2
    err = capfd.readouterr()[1]
    assert "need its GGUF form" in err
    assert "--level q8_0" in err
