"""The pick against the reference: the same work in turns, the table, the line of JSON, refusals."""

import json
from dataclasses import fields

import pytest
from tiny import tiny_llama

from edge.bench import pick as bench
from edge.bench.record import Spread
from edge.choose import Row
from edge.errors import StoreError
from edge.goals import Goal


def row(level, size, kld):
    asked = {"artifact": f"m-{level}.gguf", "level": level, "bytes": size, "kld_mean": kld, "reason": "here"}
    return Row(**dict.fromkeys((one.name for one in fields(Row)), 1.0) | asked)


def pair(ratio, pick=row("IQ4_NL", 90, 0.01), reference=row("Q4_K_M", 100, 0.02)):  # noqa: B008 - values
    rates = dict.fromkeys(bench.WANTED, Spread(10.0, 9.0, 11.0))
    return bench.Pair(
        pick, reference, "why", (rates, rates), dict.fromkeys(bench.WANTED, Spread(ratio, 1.0, 2.0))
    )


def test_a_pick_is_allowed_only_where_it_is_no_larger_and_measured_to_be_no_worse():
    assert pair(2.0).allowed
    assert not pair(2.0, pick=row("Q8_0", 150, 0.001)).allowed
    assert not pair(2.0, pick=row("Q4_0", 90, 0.03)).allowed
    assert not pair(2.0, pick=row("Q4_0", 90, None)).allowed
    assert not pair(2.0, reference=row("Q4_K_M", 100, None)).allowed


def test_the_table_says_what_was_not_reached():
    found = bench.lines({"m": pair(1.5), "n": pair(3.0, pick=row("Q4_0", 90, None))})
    assert len(found) == 8
    assert found[4].count("(wanted 2)") == 2  # decode is to be 1.3
    assert "not allowed" not in found[4]
    assert "wanted" not in found[7]
    assert "not allowed" in found[7]
    assert "not measured" in found[5]
    assert len({line.count("|") for line in found}) == 1


@pytest.mark.usefixtures("one_core")
def test_what_is_not_here_is_made_and_both_are_measured(tmp_path, monkeypatch):
    (tmp_path / "made").mkdir()
    monkeypatch.chdir(tmp_path / "made")
    monkeypatch.setattr(bench, "AT_ONCE", 2)
    monkeypatch.setattr(bench, "PREFILL_TOKENS", 16)
    monkeypatch.setattr(bench, "DECODE_TOKENS", 4)
    path = tiny_llama(tmp_path / "tiny.gguf", ctx=1024)
    found = bench.pick(str(path), tmp_path / "made", Goal("quality"), turns=1, tokens=4)
    assert (found.pick.level, found.reference.level) == ("F32", "Q4_K_M")
    assert not found.same
    assert not found.allowed  # nothing of it was measured
    assert all(found.ratios[kind].median > 0 for kind in bench.WANTED)
    assert (tmp_path / "made" / "tiny-q4_k_m.gguf").exists()
    names = [one.name for one in bench.rows_of({"tiny": found})]
    assert names == ["tiny pick", "tiny reference", "tiny ratio"]
    json.dumps([dict(one.figures) for one in bench.rows_of({"tiny": found})], default=vars)


def test_what_an_earlier_run_made_is_taken_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "source").mkdir()
    path, out = tiny_llama(tmp_path / "source" / "tiny.gguf", ctx=1024), tmp_path / "out"
    found = bench.choices(str(path), Goal("quality"))
    reference = bench.reference_of(found)
    made = bench.file_of(found, reference, out)
    before = made.stat().st_mtime_ns
    assert bench.file_of(found, reference, out) == made == out / "tiny-q4_k_m.gguf"
    assert made.stat().st_mtime_ns == before
    for wrong in (path.read_bytes(), b"no model"):  # of its name, and another file
        made.write_bytes(wrong)
        with pytest.raises(StoreError, match="is there already"):
            bench.file_of(found, reference, out)
