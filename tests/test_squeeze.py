"""`edge convert --fit`: the solver, what is measured, the budget kept, and what is refused."""

import itertools
import json
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tiny_checkpoints
from recorded_rates import kernels_of, recorded_rates
from tiny_mixture import mixture

from edge import gguf_header
from edge.child import python_m
from edge.cli import run
from edge.cli.ended import by_exception
from edge.convert import gguf_source, imatrix
from edge.convert.computed import decoded, loaded
from edge.convert.fit import CHUNKS, USUAL, fit, measured
from edge.convert.ggml_types import dequantize
from edge.convert.probe import Probe, probe
from edge.convert.quantize import Settings, encode
from edge.convert.sensitivity import as_rounded, encoded, errors_of, measurable, measure
from edge.convert.squeeze import Option, fastest, solve
from edge.convert.to_gguf import convert
from edge.engine.binding import interrupts_held
from edge.errors import ConversionError, RequestError, StoreError
from edge.machine import host
from edge.rates import key_of, save

TEXT = "The ferry left late, and nobody on the quay seemed to mind. " * 30
ONE = Settings(threads=1)
Q = "blk.1.attn_q.weight"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny_checkpoints.write("llama", tmp_path_factory.mktemp("source") / "model")


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    (made,) = convert(source, ["f16"], tmp_path_factory.mktemp("whole"), prove=False, settings=ONE)
    return made.path


def instances():
    draw = np.random.default_rng(7)
    for _ in range(40):
        options = {
            f"t{number}": [
                Option(f"k{kind}", int(draw.integers(1, 40)) * 32, float(draw.random())) for kind in range(4)
            ]
            for number in range(5)
        }
        least = sum(min(one.bytes for one in of) for of in options.values())
        yield options, least + int(draw.integers(0, 1500))


def test_the_solver_finds_what_trying_all_finds():
    for options, budget in instances():
        found = solve(options, budget)
        best = min(
            sum(one.loss for one in every)
            for every in itertools.product(*options.values())
            if sum(one.bytes for one in every) <= budget
        )
        assert sum(one.bytes for one in found.values()) <= budget
        assert sum(one.loss for one in found.values()) == pytest.approx(best, abs=1e-12)
        assert list(found) == list(options)


def test_a_budget_of_more_steps_than_the_table_is_kept_and_nearly_used(monkeypatch):
    monkeypatch.setattr("edge.convert.squeeze.STATES", 16)
    for options, budget in instances():
        found = solve(options, budget)
        left = budget - sum(one.bytes for one in found.values())
        assert left >= 0
        for name, of in options.items():  # nothing better fits into what is left
            assert not any(
                one.loss < found[name].loss and one.bytes - found[name].bytes <= left for one in of
            )


def test_too_small_a_budget_names_the_least():
    with pytest.raises(RequestError) as caught:
        solve({"a": [Option("k", 96, 1.0)], "b": [Option("k", 32, 1.0)]}, 127)
    assert "128" in caught.value.hint


def test_a_lowered_tensor_diverges_as_a_file_with_it_does(source, whole, tmp_path):
    with gguf_source.open(whole) as weights, probe(whole, TEXT, [Q], chunks=4, threads=1) as model:
        assert np.abs(model.divergence()).max() < 1e-9
        model.put(Q, "Q4_0", encoded(weights, Q, "Q4_0", None, model.pool))
        found = model.divergence(slice(0, 1))[0]
        assert model.divergence(slice(0, 1), 8)[0] == pytest.approx(found[:8], rel=0.2)
        chunk = model.chunks[0]
        model.restore([Q])
        assert np.abs(model.divergence()).max() < 1e-9
    types = {tensor.name: tensor.type for tensor in gguf_header.read(whole).tensors} | {Q: "Q4_0"}
    from edge.convert.source import opened
    from edge.convert.to_gguf import make

    with opened(source, "lowered") as read:
        (file,) = make(read, ["own"], tmp_path, settings=Settings(threads=1, types=types), prove=False)
    pair = []
    for path in (whole, file.path):
        with loaded(path, repacked=False) as handle:
            logits = decoded(handle, [chunk])[1].astype(np.float64)
        pair.append(logits - np.log(np.exp(logits).sum(1, keepdims=True)))
    expected = (np.exp(pair[0]) * (pair[0] - pair[1])).sum(1)
    assert expected.mean() > 1e-5
    # another context computes attention in other precision
    assert found.mean() == pytest.approx(expected.mean(), rel=0.02)


@pytest.mark.parametrize("size", [70_000, 110_000])
def test_the_file_has_at_most_the_size_and_nearly_it(source, tmp_path, size):
    one = fit(source, TEXT, tmp_path, size=size, settings=ONE)
    assert one.file.path.stat().st_size == one.file.bytes <= size
    assert one.file.bytes > 0.97 * size
    assert one.file.certificate is not None
    header = gguf_header.read(one.file.path)
    assert {tensor.type for tensor in header.tensors if len(tensor.shape) == 1} == {"F32"}
    bits = 8 * sum(tensor.bytes for tensor in header.tensors) / header.parameters
    assert header.quantization == f"{bits:.2f}bpw"
    assert one.file.path.name == f"model-{header.quantization}.gguf"
    assert 0 < one.kld_measured < 1
    assert one.kld_predicted == pytest.approx(one.kld_measured, rel=0.5)
    assert {path.name for path in tmp_path.iterdir()} == {one.file.path.name, one.file.path.stem + ".json"}


def test_bits_a_weight_are_of_all_tensors(source, tmp_path):
    one = fit(source, TEXT, tmp_path, bpw=5.5, settings=ONE, prove=False, kinds=("Q8_0", "Q4_0"))
    header = gguf_header.read(one.file.path)
    bits = (
        8 * sum(tensor.bytes for tensor in header.tensors) / sum(tensor.elements for tensor in header.tensors)
    )
    assert 5.2 < bits <= 5.5
    assert {tensor.type for tensor in header.tensors} == {"F32", "Q8_0", "Q4_0"}


def test_a_tied_embedding_is_lowered_as_the_output_too(tmp_path):
    source = tiny_checkpoints.write("llama-tied", tmp_path / "tied")
    one = fit(source, TEXT, tmp_path, bpw=6, settings=ONE, prove=False)
    assert "output.weight" not in {tensor.name for tensor in gguf_header.read(one.file.path).tensors}
    assert one.kld_predicted == pytest.approx(one.kld_measured, rel=0.5)


def test_too_small_a_size_names_the_smallest_which_then_goes(source, tmp_path):
    for asked in ({"size": 1000}, {"bpw": 1.0}):
        with pytest.raises(RequestError, match="does not fit") as caught:
            fit(source, TEXT, tmp_path, settings=ONE, **asked)
        assert "smallest" in caught.value.hint
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(RequestError) as caught:
        fit(source, TEXT, tmp_path, size=1000, settings=ONE)
    least = int(caught.value.hint.split("can be is ")[1].split(" bytes")[0].replace(",", ""))
    assert fit(source, TEXT, tmp_path, size=least, settings=ONE, prove=False).file.bytes == least


def test_a_text_too_short_is_refused_and_nothing_left(source, tmp_path):
    with pytest.raises(RequestError, match="too short to measure"):
        fit(source, "Hardly a word.", tmp_path, size=110_000, settings=ONE)
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_nothing_half_written(source, tmp_path, monkeypatch):
    def report(doing, done, total):
        if doing == "measuring tensors" and done == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(source, TEXT, tmp_path, size=110_000, settings=ONE, report=report)
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_is_ended_takes_the_whole_model_with_it(source, tmp_path):
    words = ["--fit", "110kB", "--calibrate", TEXT * 4, "--out", str(tmp_path), "--threads", "1"]
    process = subprocess.Popen(
        python_m("edge", "convert", str(source), *words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not any(tmp_path.glob(".edge-*/*.gguf")):
        time.sleep(0.01)
    process.terminate()
    assert process.wait(timeout=60) == 1
    assert not any(tmp_path.glob(".edge-*"))


def test_a_file_that_is_there_is_kept(source, tmp_path):
    made = fit(source, TEXT, tmp_path, bpw=6, settings=ONE, prove=False).file.path
    before = made.read_bytes()
    with pytest.raises(StoreError, match="is there already"):
        fit(source, TEXT, tmp_path, bpw=6, settings=ONE, prove=False)
    assert made.read_bytes() == before


def test_the_command(source, tmp_path, capsys):
    words = [
        "convert",
        str(source),
        "--fit",
        "110kB",
        "--calibrate",
        TEXT,
        "--out",
        str(tmp_path),
        "--threads",
        "1",
    ]
    assert run([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["file"]["bytes"] <= 110_000
    assert found["kld_measured"] > 0
    assert (tmp_path / "model.imatrix.gguf").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--fit", "1MB", "--bpw", "4", "--calibrate", "a b"], "both given"),
        (["--fit", "1MB", "--level", "q4_0", "--calibrate", "a b"], "does not go with --fit"),
        (["--bpw", "4", "--dry-run", "--calibrate", "a b"], "does not go with --bpw"),
        (["--fit", "1MB"], "none is given"),
        (["--fit", "much", "--calibrate", "a b"], "is not a size"),
        (["--bpw", "0", "--calibrate", "a b"], "no number of bits"),
        (["--bpw", "nan", "--calibrate", "a b"], "no number of bits"),
        (["--fit", "1MB", "--to", "onnx"], "does not go with --to onnx"),
    ],
)
def test_what_does_not_go_together_is_refused(source, words, said, capsys):
    assert run(["convert", str(source), *words]) != 0
    assert said in capsys.readouterr().err


def test_types_that_divide_no_rows_are_not_offered(source, tmp_path):
    with pytest.raises(RequestError, match="no weights that could be lowered"):
        fit(source, TEXT, tmp_path, size=110_000, settings=ONE, kinds=("Q4_K",))


@pytest.mark.parametrize("name", ["blk.0.attn_q.weight", "blk.0.ffn_down.weight"])
def test_an_importance_matrix_of_another_model_is_refused_before_it_is_read_beyond_its_end(
    source, tmp_path, name
):
    settings = Settings(threads=1, importance={name: np.ones(8, np.float32)})
    with pytest.raises(ConversionError, match=rf"8 columns for {name}"):
        fit(source, TEXT, tmp_path, size=110_000, settings=settings)
    assert list(tmp_path.iterdir()) == []


def test_an_error_while_other_threads_compute_waits_for_them(whole, monkeypatch):
    """Their contexts and blocks would be freed below them: the process would end."""
    computing, freed = [], []
    real = Probe._apart

    def apart(self, chunk, base):
        if np.shares_memory(base, self._reference[0]):
            raise ConversionError("not this one")
        computing.append(1)
        time.sleep(0.3)
        assert not freed
        found = real(self, chunk, base)
        computing.pop()
        return found

    monkeypatch.setattr(Probe, "_apart", apart)
    monkeypatch.setattr(Probe, "restore", lambda self, names: freed.append(len(computing)))
    with (
        pytest.raises(ConversionError, match="not this one"),
        probe(whole, TEXT, [Q], chunks=4, threads=2) as model,
    ):
        model.divergence()
    assert freed == [0]


def test_the_matrix_that_a_fit_collects_is_kept_and_the_size_holds_it_too(source, tmp_path):
    one = fit(source, TEXT, tmp_path, size=110_000, settings=ONE, calibrate="words.txt", prove=False)
    matrix = imatrix.read(tmp_path / "model.imatrix.gguf")
    assert matrix.datasets == ("words.txt",)
    header = gguf_header.read(one.file.path)
    assert header.metadata["quantize.imatrix.file"] == "model.imatrix.gguf"
    assert one.file.bytes <= 110_000


def test_the_smallest_that_is_named_goes_with_a_matrix_too(source, tmp_path):
    with pytest.raises(RequestError) as caught:
        fit(source, TEXT, tmp_path, size=1000, settings=ONE, calibrate="words.txt")
    least = int(caught.value.hint.split("can be is ")[1].split(" bytes")[0].replace(",", ""))
    one = fit(source, TEXT, tmp_path, size=least, settings=ONE, calibrate="words.txt", prove=False)
    assert one.file.bytes <= least


def test_an_encoder_has_nothing_to_measure(tmp_path):
    source = tiny_checkpoints.write("distilbert", tmp_path / "model")
    with pytest.raises(RequestError, match="continues no text"):
        fit(source, TEXT, tmp_path / "out", bpw=14, settings=ONE)
    assert list((tmp_path / "out").iterdir()) == []


def test_experts_have_an_importance_each(tmp_path):
    source = mixture(tmp_path / "moe.gguf", experts=4, used=2)
    one = fit(source, TEXT, tmp_path, bpw=5, settings=ONE, calibrate="words.txt", prove=False)
    assert one.file.bits_per_weight <= 5
    assert 0 < one.kld_measured < 1


def test_a_fit_for_this_host_by_the_command(source, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("EDGE_HOME", str(tmp_path / "home"))
    costs = {"Q8_0": 1e-8, "Q5_1": 1e-8, "Q5_0": 1e-8, "Q4_1": 1e-8, "Q4_0": 1e-9, "IQ4_NL": 1e-8}
    save(recorded_rates(kernels_of(costs), key=key_of(host())))
    words = ["convert", str(source), "--for-host", "--calibrate", TEXT, "--threads", "1", "--no-proof"]
    assert run([*words, "--fit", "110kB", "--out", str(tmp_path / "a")]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("as good as")]
    assert "times as fast, as predicted" in line
    assert run([*words, "--fit", "90kB", "--out", str(tmp_path / "b"), "--json"]) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert (found["level"] == "") == (found["speedup"] is None) == ("not the fastest" in shown.err)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--fit", "1kB", "--calibrate", TEXT], "does not fit"),
        (["--fit", "110kB", "--calibrate", "Hardly a word."], "too short to measure on"),
    ],
)
def test_what_is_refused_leaves_no_matrix(source, tmp_path, words, said, capsys):
    assert run(["convert", str(source), *words, "--out", str(tmp_path), "--threads", "1"]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_type_that_the_source_had_already_loses_only_what_rounded_inputs_do(whole, monkeypatch):
    read = gguf_source.GGUFSource.read

    def as_q4_1(*given):
        values = read(*given)
        lower = np.empty_like(values)
        dequantize(
            encode(values.reshape(1, -1), "Q4_1", None, pool, 1).reshape(-1), "Q4_1", lower.reshape(-1)
        )
        return lower

    monkeypatch.setattr(gguf_source.GGUFSource, "read", as_q4_1)
    with (
        ThreadPoolExecutor(1) as pool,
        gguf_source.open(whole) as weights,
        probe(whole, TEXT, [Q], chunks=4, threads=1) as model,
    ):
        errors = errors_of(weights, Q, ["F16", "Q8_0", "Q4_1", "Q4_0"], None, model)
    assert errors["F16"] < 1e-6 < 1e-5 < errors["Q4_1"] <= errors["Q8_0"] < 2e-4 < 1e-3 < errors["Q4_0"]
    assert measurable(5.0, errors) == "Q4_0"


def test_the_type_to_measure_is_below_the_budget_and_its_error_is_seen():
    errors = {
        "Q8_0": 3e-5,
        "Q5_0": 2e-3,
        "Q4_0": 6e-3,
        "MXFP4": 9e-3,
        "Q3_K": 2e-2,
        "IQ3_S": 1e-2,
        "Q2_K": 9e-2,
    }
    assert measurable(8.0, errors) == "Q4_0"
    assert measurable(5.0, errors) == "Q4_0"  # MXFP4 is nearer, and unlike the others
    assert measurable(4.1, errors) == "Q3_K"  # of two of one size the first
    assert measurable(1.0, errors) == "Q2_K"
    assert measurable(4.1, {"Q8_0": 3e-5, "Q6_K": 3e-4}) == "Q6_K"
    assert (
        measurable(5.0, {"F16": 1e-9, "Q8_0": 3e-5, "Q4_1": 3e-5, "Q4_0": 2e-3}) == "Q4_0"
    )  # of a source in Q4_1


def test_the_fastest_within_bytes_and_loss_is_found():
    """Against all combinations, whose best a weighted sum need not find but comes near to."""
    random = np.random.default_rng(0)
    options = {
        f"t{at}": [
            Option(kind, size, float(loss * random.uniform(0.5, 2)), float(random.uniform(1, 3)))
            for kind, size, loss in (("Q8_0", 8, 1), ("Q6_K", 6, 4), ("Q4_K", 4, 20), ("Q2_K", 2, 90))
        ]
        for at in range(5)
    }
    budget = 26
    every = [
        chosen
        for chosen in itertools.product(*options.values())
        if sum(one.bytes for one in chosen) <= budget
    ]
    for most in (60.0, 100.0, 200.0):
        able = [chosen for chosen in every if sum(one.loss for one in chosen) <= most]
        found = fastest(options, budget, most).values()
        assert sum(one.bytes for one in found) <= budget
        assert sum(one.loss for one in found) <= most
        assert sum(one.seconds for one in found) <= 1.15 * min(
            sum(one.seconds for one in chosen) for chosen in able
        )
    assert fastest(options, budget, 0.0) == solve(options, budget)


def test_for_a_host_the_file_is_as_good_as_the_usual_level_and_faster(source, whole, tmp_path):
    """Where one type is ten times as fast as the others, it takes all the places that it may."""
    costs = {"Q8_0": 1e-8, "Q5_1": 1e-8, "Q5_0": 1e-8, "Q4_1": 1e-8, "Q4_0": 1e-9, "IQ4_NL": 1e-8}
    rates = recorded_rates(kernels_of(costs))
    plain = fit(source, TEXT, tmp_path / "plain", size=110_000, settings=ONE, prove=False)
    one = fit(source, TEXT, tmp_path, size=110_000, settings=ONE, prove=False, rates=rates)
    assert one.level in USUAL
    assert one.speedup > 1.1
    assert one.file.bytes <= 110_000
    counts = [
        sum(tensor.type == "Q4_0" for tensor in gguf_header.read(made.file.path).tensors)
        for made in (plain, one)
    ]
    assert counts[0] < counts[1]
    (level,) = convert(source, [one.level], tmp_path / "level", settings=ONE, prove=False)
    names = [tensor.name for tensor in gguf_header.read(level.path).tensors if len(tensor.shape) > 1]
    with probe(whole, TEXT, names, chunks=CHUNKS, threads=1) as model:
        assert one.kld_measured <= 1.1 * measured(model, level.path, names).mean()


def test_a_matrix_of_zeros_costs_nothing_and_gets_the_fewest_bits(whole, monkeypatch):
    """As of layers that were added to a model and not trained yet."""
    read = gguf_source.GGUFSource.read
    monkeypatch.setattr(gguf_source.GGUFSource, "read", lambda *given: read(*given) * 0)
    monkeypatch.setattr(Probe, "divergence", lambda self, chunks=None, tokens=None: np.zeros((2, 8)))
    with gguf_source.open(whole) as weights, probe(whole, TEXT, [Q], chunks=4, threads=1) as model:
        losses = measure(model, weights, {Q: ["Q8_0", "Q4_0"]}, {}, 4.5, slice(0, 1), 8, lambda *_: None)
    assert all(0 < loss < 1e-9 for loss in losses[Q].values())
    assert (
        solve({Q: [Option("Q8_0", 85, losses[Q]["Q8_0"]), Option("Q4_0", 45, losses[Q]["Q4_0"])]}, 84)[Q].kind
        == "Q4_0"
    )


def test_inputs_are_rounded_to_8_bits_by_blocks_however_large():
    inputs = np.array([[3e5, *[1.0] * 31, *[1.0] * 32, *[0.0] * 32]], np.float32)
    rounded = as_rounded(inputs)
    assert rounded[0, 0] == pytest.approx(3e5)
    assert (rounded[0, 1:32] == 0).all()  # beside so large a value
    assert (rounded[0, 32:] == inputs[0, 32:]).all()
    assert (as_rounded(inputs[:, :40]) == inputs[:, :40]).all()  # rows of such a length are not quantized


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_ends_the_command_waits_for_a_call_that_logs(number):
    """An exception cannot leave the log's callback: it would be lost."""
    with pytest.raises((KeyboardInterrupt, SystemExit)), by_exception():  # noqa: PT012
        with interrupts_held() as held:
            signal.raise_signal(number)
            assert held == [number]
        pytest.fail("it was lost")
