"""What every benchmark gives: its line of JSON comes back as it was, and only the same work is compared."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edge.bench.compare import compare, earlier
from edge.bench.record import Row, Spread, line, noise, of_json, record
from edge.cli.bench_report import Column, Output, as_csv, mebibytes, tabled
from edge.errors import RequestError, StoreError
from edge.machine.power import power_state

COLUMNS = (Column("decode_tps", "decode t/s", 1), mebibytes("peak_rss_bytes", "peak"), Column("none", "none"))
WORK = {"model_sha256": "ab" * 32, "decode_tokens": 128}


def made(decode=(10.0, 9.0, 11.0), benchmark="speed", work=WORK, settings=None, sha256="", peak=3 << 20):
    rows = (
        Row("edge", {"decode_tps": Spread(*decode), "peak_rss_bytes": peak, "none": None}, sha256),
        Row("a|b", {"decode_tps": Spread(5.0, 5.0, 5.0), "peak_rss_bytes": None, "level": "Q4_0"}),
    )
    found = record(benchmark, rows, before=power_state(), work=work, settings=settings or {"threads": 1})
    return replace(found, host=replace(found.host, marks=()))  # whatever else runs here now


def test_a_record_comes_back_as_it_was():
    one = made(sha256="cd" * 32)
    back = of_json(json.loads(line(one)))
    assert (back.rows, back.work, back.settings) == (one.rows, one.work, one.settings)
    assert (back.host, back.command, back.date) == (one.host, one.command, one.date)
    assert "\n" not in line(one)
    assert one.host.cores >= 1
    assert one.host.edge


def test_a_wide_spread_is_a_mark():
    wide = (Row("edge", {"decode_tps": Spread(10.0, 1.0, 30.0)}),)
    found = record("speed", wide, before=power_state(), work={}, settings={})
    assert any("wide spread" in mark for mark in found.host.marks)


def test_what_was_measured_once_has_no_spread():
    once = (Row("edge", {"decode_tps": Spread(10.0, 10.0, 10.0)}),)
    found = record("speed", once, before=power_state(), work={}, settings={})
    assert tabled(found, COLUMNS, markdown=False).splitlines()[1].split() == ["edge", "10.0"]
    head, row = as_csv(found).splitlines()
    assert head.endswith("decode_tps,decode_tps_low,decode_tps_high")
    assert row.endswith("edge,10.0,,")
    wide = Row("peer", {"decode_tps": Spread(10.0, 5.0, 15.0)})
    assert noise([*once, *once, wide]) == 1.0  # those of once speak for nothing


def test_ratios_are_now_over_then(tmp_path):
    (tmp_path / "then.txt").write_text(f"EDGE  10\n\n{line(made((10.0, 9.0, 11.0)))}\n")
    then = earlier(tmp_path / "then.txt", "speed")
    found = compare(made((25.0, 20.0, 30.0), peak=6 << 20), then, Path("then.txt"))
    assert [(row.name, dict(row.figures)) for row in found.rows] == [
        ("edge", {"decode_tps": 2.5, "peak_rss_bytes": 2.0}),
        ("a|b", {"decode_tps": 1.0}),
    ]
    assert found.warnings == ()


def test_the_last_record_of_several_is_taken(tmp_path):
    lines = [line(made((first, 1.0, 99.0))) for first in (1.0, 2.0)]
    (tmp_path / "runs.jsonl").write_text("\n".join([*lines, '{"cut off', "the end"]))
    figure = earlier(tmp_path / "runs.jsonl", "speed").rows[0].figures["decode_tps"]
    assert figure == Spread(2.0, 1.0, 99.0)


def test_another_host_version_or_setting_is_said_and_allowed():
    one = made()
    host = replace(one.host, cpu="Cortex-A76", llama_cpp="0.3.1", marks=("throttled: by heat, 2 times",))
    found = compare(one, replace(made(settings={"threads": 4}), host=host), Path("then"))
    said = "\n".join(found.warnings)
    for words in ("the CPU was Cortex-A76", "llama-cpp-python was 0.3.1", "threads was 4 then and is 1 now"):
        assert words in said
    assert "no evidence then: throttled" in said
    assert "no evidence now: busy" in compare(marked(one, "busy: by others"), one, Path("then")).warnings[0]


def marked(one, *marks):
    return replace(one, host=replace(one.host, marks=marks))


def test_a_comparison_with_what_is_no_evidence_says_so_in_each_form(tmp_path, capsys):
    (tmp_path / "then").write_text(line(marked(made(), "busy: other processes used 40 % of the CPUs")))
    Output("speed", False, False, None, tmp_path / "then").show(made(), COLUMNS)
    *printed, last = capsys.readouterr().out.splitlines()
    said = "no evidence then: busy: other processes used 40 % of the CPUs"
    assert f"warning: {said}" in printed
    assert json.loads(last)["compared"]["warnings"] == [said]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read"),
        ("", "holds no benchmark's result"),
        ("garbage\n\x00\xff", "holds no benchmark's result"),
        ('{"a": 1}', "holds no benchmark's result"),
        ("[1, 2]", "holds no benchmark's result"),
        ("{" * 100_000, "holds no benchmark's result"),
        ('{"benchmark": "speed", "form": 99}', "is of form 99"),
        ('{"benchmark": "speed", "form": 1}', "is damaged"),
        ('{"benchmark": "speed", "form": 1, "rows": 3, "host": []}', "is damaged"),
        (line(made(benchmark="serve")), "is of edge bench serve"),
    ],
)
def test_what_is_no_such_record_is_refused(tmp_path, text, words):
    path = tmp_path / "then.txt"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(RequestError, match=words):
        earlier(path, "speed")


@pytest.mark.parametrize(
    "damage",
    [
        {"decode_tps": [1]},
        {"decode_tps": {"median": 1}},
        {"decode_tps": {"median": float("inf"), "low": 1, "high": 1}},
        {"decode_tps": {"median": 10**400, "low": 1, "high": 1}},
        {"peak_rss_bytes": float("nan")},
        {"peak_rss_bytes": 10**400},
        {"name": 5},
    ],
)
def test_a_damaged_row_is_refused(tmp_path, damage):
    whole = json.loads(line(made()))
    whole["rows"][0] |= damage
    (tmp_path / "then.txt").write_text(json.dumps(whole))
    with pytest.raises(RequestError, match="is damaged"):
        earlier(tmp_path / "then.txt", "speed")


@pytest.mark.parametrize("marks", [[1], 5, [["busy"]]])
def test_damaged_marks_are_refused(tmp_path, marks):
    whole = json.loads(line(made()))
    whole["host"]["marks"] = marks
    (tmp_path / "then.txt").write_text(json.dumps(whole))
    with pytest.raises(RequestError, match="is damaged"):
        earlier(tmp_path / "then.txt", "speed")


def test_a_name_may_hold_what_ends_lines_elsewhere(tmp_path):
    one = made(settings={"model": "a\u2028b\x0bc"})
    (tmp_path / "then.txt").write_text(f"table\n{line(one)}\n")
    assert earlier(tmp_path / "then.txt", "speed").settings == one.settings


@pytest.mark.parametrize(
    ("then", "words"),
    [
        (made(work={**WORK, "model_sha256": "cd" * 32}), "model sha256 was cdcdcdcdcdcd… and is abab"),
        (made(work={**WORK, "decode_tokens": 64}), "decode tokens was 64 and is 128"),
        (made(work={**WORK, "context": 64}), "context was 64 and is None"),
        (made(sha256="ef" * 32), "edge was another file then"),
        (replace(made(), rows=(Row("other", {}),)), "it measured other"),
    ],
)
def test_what_is_not_comparable_is_refused(then, words):
    with pytest.raises(RequestError, match=words):
        compare(made(), then, Path("then"))


def test_the_table_has_medians_with_their_extremes_and_no_empty_column():
    text = tabled(made(), COLUMNS, markdown=False)
    assert text.splitlines()[0].split() == ["DECODE", "T/S", "PEAK", "MIB"]
    assert text.splitlines()[1].split() == ["edge", "10.0", "(9.0–11.0)", "3"]
    cells = tabled(made(), COLUMNS, markdown=True).splitlines()
    assert {line.replace("\\|", "").count("|") for line in cells} == {4}
    assert "a\\|b" in cells[3]


def test_csv_has_three_columns_for_what_was_repeated():
    head, first, second = as_csv(made()).splitlines()
    assert head.endswith("name,decode_tps,decode_tps_low,decode_tps_high,peak_rss_bytes,none,level")
    assert first.endswith("edge,10.0,9.0,11.0,3145728,,")
    assert second.endswith("a|b,5.0,,,,,Q4_0")


def test_the_record_is_the_last_line_and_alone_with_json(tmp_path, capsys):
    then = tmp_path / "then"
    Output("speed", False, False, tmp_path / "rows.csv", None).check().show(made(), COLUMNS, ["a note"])
    printed = capsys.readouterr().out
    then.write_text(printed)
    assert json.loads(printed.splitlines()[-1])["benchmark"] == "speed"
    assert "a note" in printed
    assert (tmp_path / "rows.csv").read_text().startswith("benchmark,date,name")
    assert not list(tmp_path.glob("*.partial"))
    asked = Output("speed", True, False, None, then).check()
    asked.check_work(WORK)
    with pytest.raises(RequestError, match="decode tokens was 128 and is 1 now"):
        asked.check_work({**WORK, "decode_tokens": 1})
    asked.show(made((20.0, 20.0, 20.0)), COLUMNS)
    (only,) = capsys.readouterr().out.splitlines()
    assert json.loads(only)["compared"]["rows"][0]["figures"]["decode_tps"] == 2


def test_a_table_of_ratios_follows_where_an_earlier_run_is_named(tmp_path, capsys):
    then = tmp_path / "then"
    then.write_text(line(made(settings={"threads": 8})))
    Output("speed", False, True, None, then).show(made((15.0, 15.0, 15.0)), COLUMNS)
    printed = capsys.readouterr().out
    assert "warning: threads was 8 then and is 1 now" in printed
    cells = [line.split("|") for line in printed.splitlines() if line.startswith("| edge ")]
    assert [cell.strip() for cell in cells[-1]] == ["", "edge", "1.500×", "1.000×", ""]


def test_a_terminal_gets_narrow_tables_with_the_ends_of_long_names(tmp_path, capsys):
    name = "SmolLM2-135M-Instruct-of-somebody-6.16bpw.gguf"
    one = replace(made(), rows=tuple(replace(row, name=name) for row in made().rows[:1]))
    (tmp_path / "then").write_text(line(one))
    narrow = [COLUMNS[:1], COLUMNS[1:]]
    Output("speed", False, False, None, tmp_path / "then").show(one, COLUMNS, narrow=narrow)
    printed = capsys.readouterr().out.splitlines()[:-1]
    assert [line.split() for line in printed if "MiB".upper() in line] == [
        ["PEAK", "MIB"],
        ["NOW", "OVER", "THEN", "PEAK", "MIB"],
    ]
    assert sum(line.startswith("SmolLM2-135M-I…dy-6.16bpw.gguf ") for line in printed) == 4
    Output("speed", False, True, None, None).show(one, COLUMNS, narrow=narrow)
    printed = capsys.readouterr().out
    assert f"| {name} | 10.0 (9.0–11.0) |" in printed.replace("  ", "")
    assert printed.count("\n| ---") == 1


def test_places_that_cannot_be_written_are_refused_first(tmp_path, capsys):
    for path, words in ((tmp_path, "is a folder"), (tmp_path / "no" / "rows.csv", "there is no folder")):
        with pytest.raises(RequestError, match=words):
            Output("speed", False, False, path, None).check()
    late = Output("speed", False, False, tmp_path / "late" / "rows.csv", None)
    with pytest.raises(StoreError, match=r"rows\.csv cannot be written"):
        late.show(made(), COLUMNS)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["benchmark"] == "speed"


def test_what_was_measured_is_printed_where_it_cannot_be_compared(tmp_path, capsys):
    then = tmp_path / "then"
    then.write_text(line(replace(made(), rows=(Row("other", {}),))))
    with pytest.raises(RequestError, match="it measured other"):
        Output("speed", False, False, tmp_path / "rows.csv", then).show(made(), COLUMNS)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"][0]["name"] == "edge"
    assert (tmp_path / "rows.csv").exists()


def test_only_what_is_known_of_the_work_is_checked_before(tmp_path):
    (tmp_path / "then").write_text(line(made()))
    asked = Output("speed", False, False, None, tmp_path / "then")
    asked.check_work({"decode_tokens": 128})
    with pytest.raises(RequestError, match="decode tokens was 128 and is 64"):
        asked.check_work({"decode_tokens": 64})
