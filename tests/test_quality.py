"""Perplexity and divergence: exact on hand-made logits, llama-perplexity's on models, errors in one line."""

import ctypes
import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from odd_models import encoder
from tiny import tiny_llama

from edge.bench import plot
from edge.bench.logits import Logits, blocks
from edge.bench.perplexity import cut, divergence, perplexity, score, scored
from edge.bench.quality import Report, Row, beside, groups, quality
from edge.cli import run
from edge.errors import DoesNotFit, EngineError, RequestError
from edge.evidence import qualities_of
from edge.planner import plan

TEXT = (
    "The harbour master kept two books. In the first he wrote what came in and what went out, the weight of it and "
    "the name of the ship; in the second, which nobody had ever asked to see, he wrote what the weather had been "
    "and who had lied to him. Both were exact. On the day the ferry ran aground, 14 October, the first book says "
    "only: 'Nothing landed.' The second says that the wind stood at north-west, that the pilot was his cousin, and "
    "that three men swore they had seen a light where there has never been one. He did not believe them; he went "
    "out the same night with a lamp and a boathook, and came back at four in the morning without the lamp.\n"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "base.gguf")


@pytest.fixture(scope="module")
def level(base):
    """The same model in Q4_0, which this vocabulary shows: made by llama.cpp itself."""
    made = base.with_name("q4_0.gguf")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, 1
    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    assert llama_cpp.llama_model_quantize(os.fsencode(base), os.fsencode(made), params) == 0
    llama_cpp.llama_log_set(llama_cpp.llama_log_callback(0), ctypes.c_void_p(0))
    return made


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def hurry(patch):
    """Speeds are measured for real but not for long."""
    for name, value in (("REPETITIONS", 1), ("PREFILL_TOKENS", 32), ("DECODE_TOKENS", 8)):
        patch.setattr(f"edge.bench.quality.{name}", value)


@pytest.fixture(scope="module")
def report(base, level, tmp_path_factory):
    """What the command prints as JSON for base and level, and the folder of its picture."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "text.txt").write_text(TEXT)
    options = ["--text", str(folder / "text.txt"), "--ctx", "64", "--plot", str(folder / "levels.png")]
    with pytest.MonkeyPatch.context() as patch, (folder / "out.json").open("w") as out:
        patch.setenv("EDGE_HOME", str(folder / "home"))
        patch.setattr("sys.stdout", out)
        hurry(patch)
        assert run(["bench", "quality", str(base), str(level), *options, "--json"]) == 0
    return json.loads((folder / "out.json").read_text()), folder


def test_scores_are_the_formulas_in_float64():
    random = np.random.default_rng(1)
    base = (4 * random.standard_normal((50, 3001))).astype(np.float32)
    near = (base + 0.02 * random.standard_normal(base.shape) + 3).astype(np.float32)
    far = np.roll(base, 1, axis=0)
    targets = random.integers(0, 3001, 50).astype(np.int32)
    with ThreadPoolExecutor(2) as pool:
        found = score([base, near, far], targets, pool)
    logs = [
        each - np.log(np.exp(each).sum(1))[:, None]
        for each in (base.astype(float), near.astype(float), far.astype(float))
    ]
    for index, log in enumerate(logs):
        np.testing.assert_allclose(found.nll[index], -log[np.arange(50), targets], rtol=1e-6)
    for index, log in enumerate(logs[1:]):
        expected = (np.exp(logs[0]) * (logs[0] - log)).sum(1)
        np.testing.assert_allclose(found.kld[index], expected, rtol=1e-5, atol=5e-7)
        assert (found.same_top[index] == (logs[0].argmax(1) == log.argmax(1))).all()


def test_statistics_are_those_of_llama_perplexity():
    half, quarter = np.log(2), np.log(4)
    nll_base, nll = np.array([half, half, half, half]), np.array([half, half, half, quarter])
    kld = np.array([0.0, 0.1, 0.2, 0.7])
    value, error = perplexity(nll)
    assert value == pytest.approx(2**1.25)
    # exp of the mean times √((E[x²] − E[x]²) / (count − 1)), x in nats
    assert error == pytest.approx(2**1.25 * np.sqrt((7 / 4 - (5 / 4) ** 2) * half**2 / 3))
    found = divergence(nll_base, nll, kld, np.array([True, True, True, False]))
    assert found.kld_mean == pytest.approx(0.25)
    assert found.kld_error == pytest.approx(np.sqrt((0.54 / 4 - 0.25**2) / 3))
    assert found.kld_median == pytest.approx(0.15)
    assert found.kld_p99 == pytest.approx(0.2 + 0.97 * 0.5)  # at 2.97 between the third and the fourth
    assert found.kld_max == pytest.approx(0.7)
    assert found.delta_p_mean == pytest.approx(-0.0625)
    assert found.delta_p_rms == pytest.approx(0.125)
    assert found.top1_agreement == 0.75


def test_equal_logits_do_not_diverge():
    logits = np.random.default_rng(2).standard_normal((8, 400)).astype(np.float32)
    with ThreadPoolExecutor(1) as pool:
        found = score([logits, logits.copy()], np.zeros(8, dtype=np.int32), pool)
    assert abs(found.kld).max() < 1e-6
    assert found.same_top.all()


def test_chunks_begin_with_bos_and_leave_the_rest():
    assert cut(range(10), 4, bos=None).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert cut(range(10), 4, bos=99).tolist() == [[99, 1, 2, 3], [99, 5, 6, 7]]
    assert cut(range(12), 4, limit=1).tolist() == [[0, 1, 2, 3]]
    with pytest.raises(RequestError, match="7 tokens and a context of 4 takes at least 8"):
        cut(range(7), 4)


@pytest.mark.parametrize("rows", [1, 64, 200, 512])
@pytest.mark.parametrize("ctx", [16, 65, 512, 1500])
def test_blocks_cover_a_chunk_once_and_never_ask_for_too_many_rows(ctx, rows):
    found = list(blocks(ctx, rows))
    assert [position for start, stop, _ in found for position in range(start, stop)] == list(range(ctx))
    positions = [position for _, _, scored_here in found for position in scored_here]
    assert positions == list(range(ctx // 2, ctx - 1))
    assert len(positions) == scored(ctx)
    assert all(stop - start <= 512 and len(scored_here) <= rows for start, stop, scored_here in found)


def test_numbers_are_those_of_llama_perplexity(report):
    # llama-perplexity -m base.gguf -f text.txt -c 64 -b 64 --save-all-logits b.kld; then
    # llama-perplexity -m q4_0.gguf -c 64 -b 64 --kl-divergence --kl-divergence-base b.kld
    (base, level), folder = report[0]["rows"], report[1]
    assert base["perplexity"] == pytest.approx(87749.0868, rel=1e-3)
    assert base["perplexity_error"] == pytest.approx(24367.23, rel=2e-3)
    assert level["perplexity"] == pytest.approx(86314.68, rel=1e-3)
    assert level["kld_mean"] == pytest.approx(0.358493, rel=2e-3)
    assert level["kld_error"] == pytest.approx(0.024887, rel=1e-2)
    assert level["kld_median"] == pytest.approx(0.237019, rel=1e-2)
    assert level["kld_p99"] == pytest.approx(1.724880, rel=1e-2)
    assert level["kld_max"] == pytest.approx(2.118855, rel=1e-2)
    assert 100 * level["delta_p_mean"] == pytest.approx(0.324, abs=2e-3)
    assert 100 * level["delta_p_rms"] == pytest.approx(4.379, abs=2e-2)
    assert 100 * level["top1_agreement"] == pytest.approx(68.145, abs=0.5)
    assert (report[0]["work"]["chunks"], report[0]["tokens"]) == (8, 8 * 31)
    assert report[0]["text"] == str(folder / "text.txt")


def test_a_row_has_sizes_and_speeds_and_the_base_no_divergence(report, base, level):
    rows = report[0]["rows"]
    assert [row["file"] for row in rows] == [str(base), str(level)]
    assert [row["level"] for row in rows] == ["F32", "Q4_0"]
    assert [row["bytes"] for row in rows] == [base.stat().st_size, level.stat().st_size]
    assert rows[0]["bits_per_weight"] == 32
    assert 4.5 < rows[1]["bits_per_weight"] < 6
    divergences = [
        name for name in rows[0] if name.startswith(("kld_", "delta_p_")) or name == "top1_agreement"
    ]
    assert len(divergences) == 8
    assert all(rows[0][name] is None and rows[1][name] is not None for name in divergences)
    assert all(row["prefill_tps"]["low"] > 0 and row["decode_tps"]["low"] > 0 for row in rows)
    assert all(1 << 20 < row["peak_rss_bytes"] < 1 << 30 for row in rows)


def test_what_was_measured_is_kept_for_the_plan(report, base, level, monkeypatch):
    found, folder = report
    monkeypatch.setenv("EDGE_HOME", str(folder / "home"))
    kept = qualities_of(level)[0]
    assert kept.kld_mean == found["rows"][1]["kld_mean"]
    assert (kept.tokens, kept.context, kept.text) == (found["tokens"], 64, "text.txt")
    assert qualities_of(base)[0].is_base


def test_the_picture_is_a_png_and_nothing_is_left_beside_it(report):
    assert (report[1] / "levels.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert not list(report[1].glob("*.partial"))


def test_the_table_is_markdown_and_blocks_of_few_rows_give_the_same(
    report, base, level, text, capsys, monkeypatch
):
    hurry(monkeypatch)
    monkeypatch.setattr("edge.bench.logits.LOGITS_BYTES", 4 * 320 * 7)
    words = ["bench", "quality", str(base), str(level), "--text", str(text), "--ctx", "64", "--markdown"]
    assert run(words) == 0
    seen = capsys.readouterr()
    *lines, _ = (line for line in seen.out.splitlines() if line and not line.startswith("no evidence"))
    assert {line.count("|") for line in lines} == {17}
    assert set(lines[1]) == set("|-: ")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    for row, cell in zip(report[0]["rows"], cells, strict=True):
        assert cell[0] == Path(row["file"]).name
        assert float(cell[4]) == pytest.approx(row["perplexity"], rel=2e-3)
    assert cells[0][6:13] == ["–"] * 7
    assert float(cells[1][6]) == pytest.approx(report[0]["rows"][1]["kld_mean"], rel=1e-2)
    assert seen.err == ""


def test_the_terminals_tables_are_narrow_and_a_mixture_of_ones_own_is_named_by_its_bits(
    base, text, tmp_path, capsys, monkeypatch
):
    hurry(monkeypatch)
    own = tmp_path / "SmolLM2-135M-Instruct-Somebodys-32.00bpw.gguf"
    data, key = bytearray(base.read_bytes()), b"general.file_type"
    data[data.index(key) : data.index(key) + len(key)] = (
        b"general.file_typo"  # as where a mixture has no number
    )
    own.write_bytes(data)
    assert run(["bench", "quality", str(base), str(own), "--text", str(text), "--ctx", "64"]) == 0
    *tables, last = capsys.readouterr().out.splitlines()
    assert [row["level"] for row in json.loads(last)["rows"]] == ["F32", "32.00bpw"]
    lines = [line for line in tables if not line.startswith("no evidence")]
    assert max(map(len, lines)) <= 110
    heads = [line.split() for line in lines if line.strip().startswith("LEVEL")]
    assert heads[0][:4] == ["LEVEL", "SIZE", "MIB", "BITS/WEIGHT"]
    assert heads[1][:3] == ["LEVEL", "PREFILL", "T/S"]
    assert sum(line.startswith("SmolLM2-135M-I…s-32.00bpw.gguf  32.00bpw ") for line in lines) == 2


def test_ctrl_c_is_heard_while_a_chunk_is_computed(base):
    with Logits(plan(str(base), ctx=64, threads=1)) as model, ThreadPoolExecutor(1) as away:
        chunk = np.ones(64, np.int32)

        def endless():
            while True:
                list(model.of(chunk))

        pool = ThreadPoolExecutor(1)
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        try:
            with pytest.raises(KeyboardInterrupt):
                beside(away, endless, [model], pool)
        finally:
            signal.signal(signal.SIGALRM, before)
        with pytest.raises(RuntimeError, match="after shutdown"):
            pool.submit(print)
        with pytest.raises(EngineError, match="is closed"):
            list(model.of(chunk))


@pytest.mark.model
def test_the_default_model_has_the_perplexity_that_llama_perplexity_finds(default_model, text, monkeypatch):
    hurry(monkeypatch)
    # llama-perplexity -m SmolLM2-135M-Instruct.Q4_1.gguf -f text.txt -c 32 -b 32
    found = quality(str(default_model), (), text, ctx=32)
    assert found.rows[0].perplexity == pytest.approx(34.0522, rel=1e-3)
    assert found.rows[0].perplexity_error == pytest.approx(13.51459, rel=2e-3)


def test_levels_of_another_vocabulary_are_refused(base, text, tmp_path):
    data, key = bytearray(base.read_bytes()), b"tokenizer.ggml.add_bos_token"
    data[data.index(key) + len(key) + 4] = True  # after the value's type, 4 bytes
    (tmp_path / "bos.gguf").write_bytes(data)
    for other, words in (
        (tiny_llama(tmp_path / "larger.gguf", vocab=330), "larger has another vocabulary than base"),
        (tmp_path / "bos.gguf", "bos makes other tokens of the text than base"),
    ):
        with pytest.raises(RequestError, match=words):
            quality(str(base), [str(other)], text, ctx=64)


def test_what_cannot_be_measured_is_said(base, text, tmp_path, monkeypatch):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9" * 100)
    (tmp_path / "short.txt").write_text("Not much.")
    for path, words in (
        (tmp_path / "none.txt", "cannot be read"),
        (tmp_path / "latin.txt", "not UTF-8 at byte 3"),
        (tmp_path / "short.txt", "a context of 64 takes at least 128"),
    ):
        with pytest.raises(RequestError, match=words):
            quality(str(base), (), path, ctx=64)
    with pytest.raises(RequestError, match="8 is too short"):
        quality(str(base), (), text, ctx=8)
    with pytest.raises(RequestError, match="512 is out of range"):
        quality(str(base), (), text, ctx=512)
    with pytest.raises(EngineError, match="does not continue a text"):
        quality(str(encoder(tmp_path / "encoder.gguf")), (), text, ctx=64)


def test_weights_that_are_no_numbers_are_an_error(base, text, tmp_path):
    damaged = tmp_path / "damaged.gguf"
    for number in (np.nan, 1e30):
        data = bytearray(base.read_bytes())
        data[-4096:] = np.full(1024, number, dtype=np.float32).tobytes()  # of the output matrix
        damaged.write_bytes(data)
        with pytest.raises(EngineError, match="damaged gives logits that are no numbers"):
            quality(str(damaged), (), text, ctx=64)


def test_a_model_that_ends_every_answer_at_once_has_a_speed(base, text, tmp_path, monkeypatch):
    hurry(monkeypatch)
    silent = bytearray(base.read_bytes())
    silent[-320 * 64 * 4 :] = bytes(320 * 64 * 4)  # all logits 0: the first token, which ends a text, wins
    (tmp_path / "silent.gguf").write_bytes(silent)
    (row,) = quality(str(tmp_path / "silent.gguf"), (), text, ctx=64).rows
    assert row.perplexity == pytest.approx(320)
    assert row.decode_tps > 0


def test_levels_are_loaded_together_as_far_as_memory_goes(base):
    decided = plan(str(base), ctx=64, memory=100)
    assert groups([50, 20, 20, 20, 50], decided) == [[1, 2], [3], [4]]
    assert groups([50], decided) == [[]]
    with pytest.raises(DoesNotFit, match="side by side"):
        groups([50, 51], decided)


def row(level: str, size: int, kld: float | None) -> Row:
    return Row(
        Path("m.gguf"), level, 9.0, 0.1, kld, kld, kld, kld, kld, 0.0, 0.0, 0.9, 4.0, size, 1.0, 1.0, 1
    )


def test_the_line_of_the_picture_joins_what_no_smaller_file_beats(tmp_path):
    levels = [row("Q8_0", 80, 0.001), row("Q4_1", 50, 0.03), row("Q4_0", 45, 0.03), row("IQ4_NL", 45, 0.02)]
    assert [each.level for each in plot.best(levels)] == ["IQ4_NL", "Q8_0"]
    pytest.importorskip("matplotlib")
    same = row("F16", 160, 0.0)  # a file against itself has no place on a logarithmic scale, and gets one
    plot.draw(Report(Path("t.txt"), 64, 8, 248, (row("F16", 160, None), *levels, same)), tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 10_000


def test_a_picture_that_cannot_be_drawn_is_refused_before_anything_is_measured(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    (tmp_path / "folder.png").mkdir()
    for path, levels, words in (
        (tmp_path / "p.jpg", 1, "no name of a PNG file"),
        (tmp_path / "none" / "p.png", 1, "there is no folder"),
        (tmp_path / "p.png", 0, "there is no level to draw"),
        (tmp_path / "folder.png", 1, "is a folder"),
    ):
        with pytest.raises(RequestError, match=words):
            plot.check(path, levels)
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(RequestError) as missing:
        plot.check(tmp_path / "p.png", 1)
    assert "pip install matplotlib" in missing.value.hint
