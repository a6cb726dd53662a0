"""The plan: what it decides, why, what it refuses, and the nearest setting that fits."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from recorded_rates import kernels_of, recorded_rates
from tiny import tiny_llama

from edge import gguf_header, rates, speed
from edge.errors import BadGGUF, DoesNotFit, ModelNotFound, RequestError
from edge.kv import row_multiple
from edge.machine import Chosen, host
from edge.planner import plan
from edge.sizes import mib, parse_size

GIB = 1 << 30


@pytest.fixture
def model(tmp_path):
    return str(tiny_llama(tmp_path / "tiny.gguf", ctx=8192))


def machine(*, available=8 * GIB, cores=4, physical=4, fast=4, backend="llama.cpp-cpu"):
    here = host()
    return replace(
        here,
        cpu=replace(here.cpu, cores=cores, physical=physical, performance_cores=fast),
        memory=replace(here.memory, available_bytes=available),
        chosen=Chosen(backend, "for the test", ()),
    )


def test_the_defaults_and_their_reasons(model):
    decided = plan(model, on=machine())
    assert decided.context == 4096
    assert (decided.threads.prefill, decided.threads.decode) == (4, 4)
    assert (decided.backend, decided.reason, decided.gpu_layers) == ("llama.cpp-cpu", "for the test", 0)
    assert decided.fits
    assert decided.nearest == ""
    assert decided.reasons == (
        "threads 4: one a core this process may use, for prefill and decode",
        "context 4096: the default; the model was trained for 8192",
    )
    assert decided.rejected[-1].choice == "context 8192"


def test_the_threads_of_a_hybrid_cpu_are_its_fast_cores(model):
    decided = plan(model, on=machine(cores=20, physical=14, fast=6))
    assert decided.threads.decode == 6
    assert "performance core" in decided.reasons[0]


def test_a_gpu_takes_every_layer(model):
    assert plan(model, on=machine(backend="llama.cpp-cuda")).gpu_layers == 999


def test_what_is_asked_for_is_what_is_planned(model):
    decided = plan(model, ctx=300, threads=3, sequences=2, on=machine())
    assert (decided.context, decided.threads.prefill, decided.sequences) == (300, 3, 2)
    assert decided.reasons == ("threads 3: asked for", "context 300: asked for")
    assert (decided.parallel, decided.unified, decided.kv, decided.flash) == (1, True, "f16", None)


def test_the_total_is_the_sum_of_its_parts_and_grows_with_the_context(model):
    small, large = (plan(model, ctx=ctx, on=machine()).memory for ctx in (512, 8192))
    for memory in (small, large):
        parts = (memory.weights_bytes, memory.repacked_bytes, memory.kv_bytes)
        parts += (memory.compute_bytes, memory.logits_bytes, memory.runtime_bytes)
        assert memory.total_bytes == sum(parts)
    # 2 layers × 2 heads × 16 per head × keys and values × f16
    assert small.kv_bytes == 512 * 2 * 2 * 16 * 2 * 2
    assert large.kv_bytes == 16 * small.kv_bytes


def test_what_does_not_fit_is_refused_with_the_nearest_that_does(model):
    enough = plan(model, ctx=2048, on=machine()).memory.total_bytes
    decided = plan(model, ctx=8192, memory=enough, on=machine())
    assert not decided.fits
    assert decided.nearest == "a context of 2048 fits: --ctx 2048"
    with pytest.raises(
        DoesNotFit, match=r"tiny needs \d+ MiB at a context of 8192 and \d+ MiB are available"
    ) as refused:
        decided.require_fit()
    assert refused.value.exit_code == 4
    assert plan(model, ctx=2048, memory=enough, on=machine()).fits


def test_a_budget_below_everything_says_what_the_least_is(model):
    assert plan(model, memory="1MiB", on=machine()).nearest.startswith("even the shortest context takes ")


def test_a_budget_cannot_exceed_what_is_available(model):
    decided = plan(model, memory="100GiB", on=machine(available=GIB))
    assert decided.memory.available_bytes == GIB


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [
        ("512MiB", 512 << 20),
        ("2G", 2 * 10**9),
        ("1.5 gib", 3 << 29),
        ("100", 100),
        (7, 7),
        (1.5e9, 1_500_000_000),
        ("3 kB", 3000),
    ],
)
def test_sizes(text, bytes_):
    assert parse_size(text) == bytes_


@pytest.mark.parametrize("text", ["", "0", "-5", "1e9", "nan", "5 potatoes", "MiB", "1.2.3G"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(RequestError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    "settings", [{"ctx": 0}, {"ctx": -1}, {"ctx": 8193}, {"threads": 0}, {"threads": 9999}]
)
def test_settings_out_of_range_are_refused(model, settings):
    with pytest.raises(RequestError, match="out of range"):
        plan(model, on=machine(), **settings)


def test_what_is_no_gguf_is_refused(tmp_path):
    with pytest.raises(ModelNotFound):
        plan("no-such-model")
    (tmp_path / "page.gguf").write_text("<!doctype html>")
    with pytest.raises(BadGGUF):
        plan(str(tmp_path / "page.gguf"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text(json.dumps({"architectures": ["BertModel"]}))
    (tmp_path / "folder" / "model.safetensors").write_bytes(b"\0" * 16)
    with pytest.raises(RequestError, match="is not a GGUF file"):
        plan(str(tmp_path / "folder"))


def test_a_split_model_is_planned_as_the_sum_of_its_parts(tmp_path):
    import subprocess
    import sys

    pytest.importorskip("gguf")
    whole = tiny_llama(tmp_path / "whole.gguf")
    code = f"""
import gguf
reader = gguf.GGUFReader({str(whole)!r})
writer = gguf.GGUFWriter({str(tmp_path / "part.gguf")!r}, "llama", split_max_tensors=12)
for field in reader.fields.values():
    if not field.name.startswith("GGUF.") and field.name != "general.architecture":
        kinds = field.types
        writer.add_key_value(field.name, field.contents(), kinds[0], kinds[1] if len(kinds) > 1 else None)
for tensor in reader.tensors:
    writer.add_tensor(tensor.name, tensor.data)
writer.write_header_to_file(); writer.write_kv_data_to_file(); writer.write_tensors_to_file(); writer.close()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    first = sorted(tmp_path.glob("part-*.gguf"))[0]
    split, alone = plan(str(first), on=machine()), plan(str(whole), on=machine())
    assert split.memory.weights_bytes == alone.memory.weights_bytes
    assert split.memory.kv_bytes == alone.memory.kv_bytes
    from edge.engine import Engine, Sampling

    def say(decided):
        with Engine(decided) as engine:
            ids = engine.vocab.tokens("the king")
            return [chunk.token for chunk in engine.submit(ids, Sampling(temperature=0, max_tokens=8))]

    assert say(split) == say(alone)


@pytest.mark.parametrize("ctx", [None, 1])
def test_a_file_that_states_no_context_is_refused(tmp_path, ctx):
    path = tiny_llama(tmp_path / "none.gguf", ctx=0)
    with pytest.raises(BadGGUF, match="a context of 0 tokens"):
        plan(str(path), ctx=ctx)


@pytest.fixture
def wide(tmp_path):
    """Heads of 32, which a quantized cache can hold; 4 layers, so that the cache is most of what it takes."""
    return str(tiny_llama(tmp_path / "wide.gguf", embd=128, layers=4, kv_heads=4, ctx=8192))


def test_conversations_at_a_time_have_a_context_each(wide):
    decided = plan(wide, ctx=2000, parallel=3, on=machine())
    assert (decided.sequences, decided.parallel, decided.unified) == (3, 3, False)
    assert (decided.kv, decided.flash) == ("f16", True)
    # 4 layers × 4 heads × 32 per head × keys and values × f16, each stream padded to 2,048
    assert decided.memory.kv_bytes == 3 * 2048 * 4 * 4 * 32 * 2 * 2
    assert any(reason.startswith("parallel 3: ") for reason in decided.reasons)
    assert any(reason.startswith("flash attention on: ") for reason in decided.reasons)


def test_fewer_bits_are_taken_before_it_does_not_fit_and_the_reason_says_so(wide):
    exact, half, quarter = (
        plan(wide, ctx=8192, parallel=16, kv=kv, on=machine()).memory for kv in ("f16", "q8_0", "q4_0")
    )
    assert (half.kv_bytes * 64, quarter.kv_bytes * 64) == (exact.kv_bytes * 34, exact.kv_bytes * 18)
    for budget, kv, rejected in (
        (exact.total_bytes, "f16", 0),
        (exact.total_bytes - 1, "q8_0", 1),
        (half.total_bytes - 1, "q4_0", 2),
    ):
        decided = plan(wide, ctx=8192, parallel=16, memory=budget, on=machine())
        assert (decided.fits, decided.kv, decided.flash) == (True, kv, True)
        assert len([other for other in decided.rejected if other.choice.startswith("KV of ")]) == rejected
        assert any(reason.startswith(f"KV {kv}: what is more exact") for reason in decided.reasons) == (
            rejected > 0
        )
    assert not plan(wide, ctx=8192, parallel=16, kv="f16", memory=half.total_bytes, on=machine()).fits


@pytest.mark.parametrize("settings", [{}, {"parallel": 8}, {"parallel": 2, "kv": "q8_0"}, {"scoring": True}])
def test_a_longer_context_is_left_out_for_what_it_would_take_with_the_same_settings(wide, settings):
    decided = plan(wide, on=machine(), **settings)
    more = plan(wide, ctx=8192, on=machine(), **settings).memory.total_bytes - decided.memory.total_bytes
    (left_out,) = [other for other in decided.rejected if other.choice == "context 8192"]
    assert left_out.reason == f"takes {mib(more)} more; ask for it with --ctx 8192"


def test_a_default_context_is_not_paid_for_with_fewer_bits(wide):
    enough = plan(wide, on=machine()).memory.total_bytes
    assert not plan(wide, memory=enough - 1, on=machine()).fits
    assert plan(wide, ctx=4096, memory=enough - 1, on=machine()).kv == "q8_0"


def test_more_at_a_time_than_fit_are_refused_with_the_most_that_do(model):  # its heads of 16 are no block
    enough = plan(model, ctx=4096, parallel=5, on=machine()).memory.total_bytes
    refused = plan(model, ctx=4096, parallel=200, memory=enough, on=machine())
    assert not refused.fits
    assert refused.nearest.startswith("5 conversations at a time fit: --parallel 5")
    assert plan(model, ctx=4096, parallel=5, memory=enough, on=machine()).fits
    assert not plan(model, ctx=4096, parallel=6, memory=enough, on=machine()).fits


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"parallel": 0}, "out of range"),
        ({"parallel": 257}, "out of range"),
        ({"sequences": 257}, "out of range"),
        ({"sequences": 5, "parallel": 4}, "5 answers take as many slots"),
        ({"kv": "q5_1"}, "is not known"),
        ({"kv": "q8_0"}, "its heads are 16 wide, and 32 values make a block"),
    ],
)
def test_ways_to_keep_a_cache_that_are_not_possible(model, settings, says):
    with pytest.raises(RequestError, match=says):
        plan(model, on=machine(), **settings)


def test_label_scoring_adds_in_f32_without_flash_attention(wide):
    decided, usual = (plan(wide, ctx=512, sequences=4, scoring=on, on=machine()) for on in (True, False))
    assert (decided.kv, decided.flash, decided.unified) == ("f32", False, True)
    assert decided.memory.kv_bytes == 2 * usual.memory.kv_bytes
    # scores of 4 heads, a mask twice as wide, a query; attention has 6 × 128 values a row, the feed-forward 10 × 128
    more = 512 * 512 * (4 * 4 + 2) + 4 * 512 * (1 + 6 - 10) * 128
    assert decided.memory.compute_bytes - usual.memory.compute_bytes == more


@pytest.mark.parametrize(
    ("kind", "isa", "rows"),
    [
        ("Q8_0", ("AVX2", "AVX-512"), 1),
        ("Q4_0", ("AVX2",), 1),
        ("F16", ("AVX2",), 2),
        ("Q4_K", ("AVX2",), 4),
        ("Q2_K", ("AVX2", "AVX-512"), 4),
        ("Q2_K", ("AVX2",), 8),  # not rearranged there, so tiled
        ("Q6_K", ("AVX2",), 8),
        ("Q4_0", ("NEON", "dotprod"), 4),
    ],
)
def test_rows_go_by_as_many_as_the_kernels_of_a_type_compute_at_once(model, kind, isa, rows):
    header = gguf_header.read(Path(model))
    tensors = tuple(
        replace(tensor, type=kind if len(tensor.shape) > 1 else "F32") for tensor in header.tensors
    )
    assert row_multiple(replace(header, tensors=tensors), isa, True)[0] == rows


def test_the_speed_of_keys_and_values_in_fewer_bits_is_not_claimed(wide, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGE_HOME", str(tmp_path / "home"))
    kernels = kernels_of({"F32": 1e-9}, host().cpu.performance_cores)
    rates.save(recorded_rates(kernels, threads=host().cpu.performance_cores, key=rates.key_of(host())))
    assert plan(wide, kv="f16").speed is not None
    lowered = plan(wide, kv="q8_0")
    assert lowered.speed is None
    assert "and not in q8_0" in lowered.speed_reason


def test_the_speed_is_predicted_from_what_was_measured_of_this_host(model, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGE_HOME", str(tmp_path / "home"))
    unknown = plan(model)
    assert (unknown.speed, unknown.speed_reason) == (
        None,
        "this host is not measured; run edge host --measure",
    )
    threads = host().cpu.performance_cores
    kernels = kernels_of({"F32": 1e-9}, threads)
    rates.save(recorded_rates(kernels, threads=threads, key=rates.key_of(host()), marks=("busy",)))
    decided = plan(model, ctx=256)
    # Nothing but the weights takes time, and each takes a nanosecond a row
    weights = sum(tensor.elements for tensor, _ in speed.matrices(gguf_header.read(Path(model))))
    assert decided.speed.decode_tps == pytest.approx(1e9 / weights)
    assert decided.speed.prompt_tokens == 256
    assert "no evidence to choose by: busy" in decided.speed_reason
