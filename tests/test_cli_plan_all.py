"""`edge plan --all`: the JSON contract, the screen, contradictory goals, what does not fit."""

import json
from pathlib import Path

import pytest
import tiny_checkpoints
from recorded_rates import kernels_of, recorded_rates
from tiny import tiny_llama

from edge import rates
from edge.candidate import BITS, HERE, Candidate
from edge.choose import Row, choose
from edge.cli import run
from edge.cli.plan_table import beats, side_by_side
from edge.convert.choices import Found
from edge.convert.onnx.levels import LEVELS
from edge.convert.quantize import levels
from edge.evidence import CERTIFICATE, RUN, Quality
from edge.goals import goal_of
from edge.machine import host

FIELDS = (
    *("artifact", "level", "bytes", "memory_bytes", "fits"),
    *("prefill_tps", "decode_tps", "kld_mean", "kld_measure", "reason"),
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return str(tiny_checkpoints.write("llama", tmp_path_factory.mktemp("source") / "model"))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def measure(**changes):
    """Keep rates of this host by which every type takes a nanosecond for as many bits as it has."""
    threads, key = host().cpu.cores, changes.pop("key", rates.key_of(host()))
    kernels = kernels_of({kind: bits * 1e-9 for kind, bits in BITS.items()}, threads)
    rates.save(recorded_rates(kernels, threads=threads, key=key, **changes))


def planned(capsys, *args):
    assert run(["plan", "--all", *args, "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return json.loads(out)


def test_the_json_has_a_row_for_every_level_and_the_pick(source, capsys):
    found = planned(capsys, source)
    assert {row["level"].lower() for row in found["rows"]} == set(levels())
    assert all(tuple(row) == FIELDS for row in found["rows"])
    assert found["pick"] == "model-q4_k_m.gguf"
    assert "quality not measured: run `edge bench quality" in found["reason"]
    assert all(row["prefill_tps"] is row["decode_tps"] is row["kld_mean"] is None for row in found["rows"])
    assert any("run edge host --measure" in note for note in found["notes"])


def test_with_a_measured_host_speeds_are_those_of_the_plan_of_the_file(tmp_path, capsys):
    path = str(tiny_llama(tmp_path / "tiny.gguf", ctx=1024))
    measure()
    rows = {row["level"]: row for row in planned(capsys, path)["rows"]}
    assert rows["Q8_0"]["prefill_tps"] > rows["F32"]["prefill_tps"]
    assert run(["plan", path, "--json"]) == 0
    speed = json.loads(capsys.readouterr().out)["speed"]
    assert rows["F32"]["prefill_tps"] == pytest.approx(speed["prefill_tps"])
    assert rows["F32"]["decode_tps"] == pytest.approx(speed["decode_tps"])
    assert planned(capsys, path, "--goal", "quality")["pick"] == path
    assert planned(capsys, path, "--goal", "speed")["pick"] != path


@pytest.mark.parametrize("stale", ["marks", "library", "damaged"])
def test_rates_that_are_stale_or_marked_are_no_evidence(stale, source, capsys, home):
    if stale == "marks":
        measure(marks=("busy: other processes used 90 % of the CPUs",))
    elif stale == "library":
        measure(key=rates.Key(**{**vars(rates.key_of(host())), "llama_cpp": "0.0.1"}))
    else:
        home.mkdir()
        (home / "rates.json").write_text('{"key": 1')
    found = planned(capsys, source)
    assert all(row["prefill_tps"] is None for row in found["rows"])
    (note,) = [note for note in found["notes"] if note.startswith("speeds: ")]
    assert {"marks": "busy", "library": "0.0.1", "damaged": "damaged"}[stale] in note
    assert run(["plan", "--all", source, "--goal", "ttft=1"]) == 2
    assert "ttft=1 cannot be judged" in capsys.readouterr().err
    assert run(["plan", "--all", source, "--goal", "speed"]) == 2
    err = capsys.readouterr().err
    assert "the goal speed cannot be judged" in err
    assert "run edge host --measure" in err


def test_the_screen_marks_the_pick_in_eighty_columns(source, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["plan", "--all", source]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["LEVEL", "SIZE", "MEMORY", "FITS", "PREFILL", "DECODE", "KLD", "FILE"]
    (pick,) = [line for line in lines if line.startswith("▸")]
    assert pick.split()[1] == "Q4_K_M"
    assert any(line.startswith("pick      Q4_K_M: ") for line in lines)
    assert any(line.startswith("speeds    this host is not measured") for line in lines)


def test_only_rows_that_could_matter_are_shown_and_the_others_counted(source, capsys):
    measure()
    found = planned(capsys, source)
    assert run(["plan", "--all", source]) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = {line.removeprefix("▸").split()[0] for line in lines[1 : lines.index("")]}
    assert "Q4_K_M" in shown
    assert len(shown) < len(found["rows"])
    (more,) = [line for line in lines if line.startswith("more")]
    assert more.split()[1] == str(len(found["rows"]) - len(shown))
    assert "--json" in more


def quality(kld, text, *, certificate=False):
    kind = CERTIFICATE if certificate else RUN
    return Quality(kld, None, None, None, "base", text, 100, 100, kind, f"{text} {kind}")


def shown(name, level, size, prefill, decode=None, *, generates=True):
    row = Row(name, level, size, size, True, prefill, decode, None, None, "")
    return row, Candidate(name, level, size, size, HERE, generates=generates)


def test_a_row_beats_another_that_is_ahead_in_nothing():
    best = shown("a", "Q4_K_M", 100, 200.0, 40.0)
    assert beats(*best, *shown("b", "Q4_0", 110, 200.0, 39.0))
    assert not beats(*best, *shown("b", "Q4_0", 110, 200.0, 60.0))  # faster
    assert not beats(*best, *shown("b", "Q4_0", 90, 200.0, 40.0))  # smaller
    assert not beats(*best, *shown("b", "Q6_K", 110, 200.0, 40.0))  # of more bits
    assert not beats(*best, *shown("b", "Q4_0", 110, None))  # nobody knows how fast
    assert beats(*shown("a", "Q4_0", 100, None), *shown("b", "Q4_0", 110, None))


def test_of_two_equal_rows_one_beats_the_other():
    pair = shown("a", "Q4_0", 100, 200.0, 40.0), shown("b", "Q4_0", 100, 200.0, 40.0)
    assert (beats(*pair[0], *pair[1]), beats(*pair[1], *pair[0])) == (True, False)


def test_of_encoders_what_keeps_labels_is_ahead_and_bits_are_not():
    mine = shown("a", "Q8_0", 100, 200.0, generates=False)
    assert beats(*mine, *shown("b", "F16", 110, 200.0, generates=False))
    assert not beats(*shown("b", "Q4_0", 90, 300.0, generates=False), *mine)


def test_divergences_of_different_texts_are_marked():
    ours = [
        Candidate("a-Q4_K_M.gguf", "Q4_K_M", 2 << 20, 3 << 20, HERE, qualities=(quality(0.02, "wiki"),)),
        Candidate("a-Q8_0.gguf", "Q8_0", 4 << 20, 5 << 20, HERE, qualities=(quality(0.01, "wiki"),)),
        Candidate(
            "a-Q6_K.gguf", "Q6_K", 3 << 20, 4 << 20, HERE, qualities=(quality(0.5, "t", certificate=True),)
        ),
    ]
    lines = side_by_side(
        Found(choose(ours, None, goal_of([]), budget=1 << 40), tuple(ours), Path())
    ).splitlines()
    (other,) = [line for line in lines if "0.5*" in line]
    assert "Q6_K" in other
    assert sum("*" in line for line in lines) == 2
    assert any(line.startswith("kld *     from base, over 100 tokens of t") for line in lines)


def test_where_nothing_fits_the_smallest_is_shown_too(source, capsys):
    assert run(["plan", "--all", source, "--memory", "1MiB"]) == 4
    lines = capsys.readouterr().out.splitlines()
    levels = [line.split()[0] for line in lines[1 : lines.index("")]]
    assert "Q4_K_M" in levels
    assert len(levels) == 2


def test_a_long_name_is_cut_at_its_beginning(tmp_path, capsys):
    path = str(tiny_llama(tmp_path / f"{'a-name-of-many-words' * 4}-f32.gguf"))
    for columns in ("80", "110"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("COLUMNS", columns)
            assert run(["plan", "--all", path]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= int(columns)
        assert any(line.endswith("-f32.gguf") and "…" in line for line in lines)


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["--goal", "speed", "--goal", "quality"], 2, "speed and quality contradict each other"),
        (["--goal", "cheap"], 2, "'cheap' is not a goal"),
        (["--goal", "memory=1MiB"], 4, "nothing fits in 1 MiB: the smallest to run, "),
        (["--memory", "1MiB"], 4, "nothing fits in 1 MiB: the smallest to run, "),
        (["--parallel", "2"], 2, "--parallel does not go with --all"),
        (["--kv", "q8_0"], 2, "--kv does not go with --all"),
        (["other.gguf"], 2, "--all compares the files of one model"),
        (["--goal", "memory=0"], 2, "is not a size"),
        (["--goal", "ttft=0"], 2, "ttft=0 is no time"),
        (["--ctx", "0"], 2, "out of range"),
    ],
)
def test_refusals_are_one_line(args, code, says, source, capsys):
    assert run(["plan", "--all", source, *args]) == code
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


def test_what_does_not_fit_is_shown_all_the_same(source, capsys):
    assert run(["plan", "--all", source, "--memory", "1MiB", "--json"]) == 4
    found = json.loads(capsys.readouterr().out)
    assert found["pick"] is None
    assert not any(row["fits"] for row in found["rows"])


def test_a_goal_without_all_is_refused(source, capsys):
    assert run(["plan", source, "--goal", "speed"]) == 2
    assert "give --all" in capsys.readouterr().err


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return str(tiny_checkpoints.write("bert", tmp_path_factory.mktemp("encoder") / "model"))


def onnx_measured():
    """Rates of ONNX Runtime by which int8 takes a tenth of fp32's time, and both little."""
    kernels = tuple(
        rates.Kernel(level, 768, 1, rows, rows * seconds, 8.0, 0.0)
        for level, seconds in (("fp32", 1e-12), ("int8", 1e-13))
        for rows in (1, 128)
    )
    names = ("add", "gelu", "norm", "round", "score", "look", "node")
    return {"onnx": kernels, "onnx_parts": tuple(rates.Part(name, 1e-15) for name in names)}


def test_an_encoder_has_rows_of_both_backends_and_decodes_nothing(encoder, capsys):
    measure(**onnx_measured())
    found = planned(capsys, encoder)
    rows = {row["level"]: row for row in found["rows"]}
    assert {level.lower() for level in rows} == {*levels(), *(f"onnx {level}" for level in LEVELS)}
    assert all(row["decode_tps"] is row["kld_mean"] is None for row in found["rows"])
    assert found["pick"] == "model-int8"
    assert "the other backend's fastest" in found["reason"]
    assert rows["onnx int8"]["prefill_tps"] > rows["onnx fp32"]["prefill_tps"] > rows["Q8_0"]["prefill_tps"]
    assert rows["onnx int8w"]["prefill_tps"] is None
    assert "not measured at int8w" in rows["onnx int8w"]["reason"]


def test_the_sizes_of_onnx_levels_are_those_of_the_folders_that_are_written(encoder, tmp_path, capsys):
    before = {row["level"]: row for row in planned(capsys, encoder)["rows"]}
    assert run(["convert", encoder, "--to", "onnx", "--level", "int8", "--out", "."]) == 0
    capsys.readouterr()
    after = {row["level"]: row for row in planned(capsys, encoder)["rows"]}
    assert before["onnx int8"]["reason"].startswith("to make")
    assert after["onnx int8"]["reason"].startswith("here")
    assert 0 < before["onnx int8"]["bytes"] <= after["onnx int8"]["bytes"]


def test_the_plan_of_an_onnx_encoder_tells_its_texts_and_no_decode(encoder, capsys):
    assert run(["convert", encoder, "--to", "onnx", "--level", "int8", "--out", "."]) == 0
    measure(**onnx_measured())
    capsys.readouterr()
    assert run(["plan", "model-int8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("texts") and "t/s of" in line for line in lines)
    assert not any(line.startswith("decode") for line in lines)


def test_convert_for_host_says_how_to_make_the_onnx_folder_that_it_would_pick(encoder, capsys):
    measure(**onnx_measured())
    assert run(["convert", encoder, "--for-host", "--out", "."]) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert "the pick is onnx int8" in err
    assert "--to onnx --level int8" in err
