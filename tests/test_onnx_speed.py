"""Predicted speed of encoders and of ONNX folders: sums that can be done by hand, and why there is none."""

from dataclasses import replace
from pathlib import Path

import pytest

from edge import onnx_speed, speed
from edge.gguf_header import Header, Tensor
from edge.onnx_folder import OnnxFolder
from edge.rates import Attention, Bandwidth, Kernel, Key, Layer, Part, Rates, Scaling

NANO = 1e-9
CONFIG = {
    "model_type": "bert", "num_hidden_layers": 3, "hidden_size": 64, "intermediate_size": 256,
    "num_attention_heads": 4,
}  # fmt: skip
WEIGHTS = 3 * (4 * 64 * 64 + 2 * 64 * 256)


def rates_of(parts=None, levels=("fp32", "int8", "int4"), **changes):
    """A nanosecond for 32 bits of a weight and row with ONNX Runtime, and for a weight and row of F32 in llama.cpp."""
    bits = {"fp32": 32.0, "int8": 8.0, "int4": 5.0}
    onnx = tuple(
        Kernel(level, 768, count, rows, rows * bits[level] / 32 * NANO / count, bits[level], 0.0)
        for level in levels
        for count in (2, 1)
        for rows in (1, 128)
    )
    found = Rates(
        key=Key("cpu", 2, "1", "1", 1),
        bandwidth=(Bandwidth(1, 10.0, 10.0, 10.0),),
        kernels=tuple(Kernel("F32", 64, 1, rows, rows * NANO, 32.0, 0.0) for rows in (1, 512)),
        layers=(Layer(64, 1, 1, 0.0),),
        attention=(Attention(1, 256, 0.0, 0.0),),
        scaling=(Scaling(1, 0.5, 1.0), Scaling(2, 1.0, 1.0)),
        prefill_threads=2, decode_threads=1, step_seconds=0.0, noise=0.0, measured_at=0.0, seconds=1.0,
        onnx=onnx,
        onnx_parts=tuple(Part(name, (parts or {}).get(name, 0.0)) for name in onnx_speed.PARTS),
    )  # fmt: skip
    return replace(found, **changes)


def folder_of(level="fp32", task="embedding", ours=True, config=CONFIG, most=256):
    return OnnxFolder(
        Path("m"), Path("m/model.onnx"), 1, level, task, (), None, "mean", True, most, 64, ours, config
    )


def predicted(rates, workers=1, **folder):
    found, why = onnx_speed.predict(folder_of(**folder), rates, threads=workers)
    assert found is not None, why
    return found


def test_an_encoder_takes_its_matrices_for_every_row_and_decodes_nothing():
    found = predicted(rates_of())
    assert 1 / found.prefill_tps == pytest.approx(WEIGHTS * NANO)
    assert found.ttft_s == pytest.approx(128 * WEIGHTS * NANO)
    assert found.prompt_tokens == 128
    assert found.decode_tps is found.decode_fraction is None
    assert found.prefill_bound == "arithmetic"
    assert found.prefill_fraction == pytest.approx(5 / 32 / 2)  # of int4 by both cores


def test_batches_run_side_by_side_and_one_text_is_no_faster_for_it():
    one, two = (predicted(rates_of(), workers) for workers in (1, 2))
    assert two.prefill_tps == pytest.approx(2 * one.prefill_tps)
    assert two.ttft_s == pytest.approx(one.ttft_s)


@pytest.mark.parametrize(
    ("part", "level", "elements"),
    [
        ("add", "fp32", 3 * (4 * 64 + 256)),
        ("add", "int4", 3 * 2 * 64),  # its operator adds the biases
        ("gelu", "fp32", 3 * 256),
        ("norm", "fp32", 3 * 2 * 64),
        ("score", "fp32", 3 * 4 * 128),
        ("look", "fp32", 3 * 4 * 128 * 16),
        ("node", "fp32", 3 * onnx_speed.FEW_NODES / 512),
    ],
)
def test_what_lies_beside_the_matrices_is_added(part, level, elements):
    plain, more = (1 / predicted(rates_of(parts), level=level).prefill_tps for parts in ({}, {part: NANO}))
    assert more - plain == pytest.approx(elements * NANO)


def test_rounding_to_8_bits_goes_by_rows_of_this_model_not_of_the_wide_one_that_was_measured():
    little = 0.01 * NANO
    plain, more = (
        1 / predicted(rates_of(parts), level="int8").prefill_tps for parts in ({}, {"round": little})
    )
    elements = 3 * (3 * 64 + 256)
    assert more - plain == pytest.approx(little * (elements - WEIGHTS * 5 / 8 / 768))
    assert more > plain


def test_a_shorter_limit_of_tokens_shortens_the_texts():
    assert predicted(rates_of(), most=16).prompt_tokens == 16


@pytest.mark.parametrize(
    ("folder", "rates", "says"),
    [
        ({"ours": False}, {}, "made elsewhere"),
        ({"level": "int8w"}, {}, "not measured at int8w"),
        ({"config": {**CONFIG, "model_type": "deberta-v2"}}, {}, "layers as deberta-v2 has them"),
        ({"config": {**CONFIG, "hidden_size": "64"}}, {}, "layers as bert has them"),
        ({"config": {}}, {}, "layers as it has them"),
        ({}, {"onnx_parts": ()}, "run edge host --measure"),
        ({}, {"onnx": ()}, "run edge host --measure"),
    ],
)
def test_nothing_is_claimed_of_what_was_not_measured(folder, rates, says):
    found, why = onnx_speed.predict(folder_of(**folder), replace(rates_of(), **rates), threads=1)
    assert found is None
    assert says in why


def test_a_decoder_reads_its_head_once_a_step():
    words = {
        "architecture": "llama", "layers": 3, "heads": 4, "kv_heads": 2, "head_size": 16, "inner": 256, "width": 64,
        "vocabulary": 1000, "context": 512, "chat_template": "", "bos": None, "eos": None, "ends": [],
    }  # fmt: skip
    folder = folder_of(task="generation", config={"edge": words})
    found, _ = onnx_speed.predict(folder, rates_of(), threads=2, depth=100, prompt=256)
    weights = 3 * (2 * 64 * 16 * (4 + 2) + 3 * 64 * 256)
    assert 1 / found.decode_tps == pytest.approx((weights + 64 * 1000) * NANO / 2)
    assert found.ttft_s == pytest.approx((256 * weights + 64 * 1000) * NANO / 2)
    looked, _ = onnx_speed.predict(folder, rates_of({"score": NANO}), threads=2, depth=100, prompt=256)
    assert 1 / looked.decode_tps - 1 / found.decode_tps == pytest.approx(3 * 4 * 101 * NANO)


def encoder_header(**more):
    tensors = [
        ("token_embd.weight", (64, 1000)), ("position_embd.weight", (64, 512)), ("token_types.weight", (64, 2)),
        ("token_embd_norm.weight", (64,)), ("cls.weight", (64, 64)),
        *[(f"blk.{layer}.attn_{part}.weight", (64, 64)) for layer in range(3) for part in ("q", "k", "v", "output")],
        *[(f"blk.{layer}.ffn_up.weight", (64, 256)) for layer in range(3)],
        *[(f"blk.{layer}.ffn_down.weight", (256, 64)) for layer in range(3)],
    ]  # fmt: skip
    metadata = {
        "general.architecture": "bert", "bert.block_count": 3, "bert.embedding_length": 64,
        "bert.attention.head_count": 4, "bert.context_length": 512, **more,
    }  # fmt: skip
    made = tuple(
        Tensor(name, shape, "F32", 0, 4 * shape[0] * (shape[1] if shape[1:] else 1))
        for name, shape in tensors
    )
    return Header(3, metadata, made, 32, 0, 0)


def test_a_gguf_encoder_multiplies_every_row_with_every_layer_and_no_table_or_head():
    found = speed.predict(encoder_header(), rates_of(), prefill_threads=1, decode_threads=1)
    assert 1 / found.prefill_tps == pytest.approx(WEIGHTS * NANO)
    assert found.decode_tps is None
    two = speed.predict(encoder_header(), rates_of(), prefill_threads=2, decode_threads=2)
    assert two.prefill_tps == pytest.approx(2 * found.prefill_tps)


def test_a_gguf_encoder_attends_over_the_square_of_a_batch():
    rates = rates_of(attention=(Attention(1, 256, NANO, 0.0),))
    plain, more = (
        1 / speed.predict(encoder_header(), one, prefill_threads=1, decode_threads=1).prefill_tps
        for one in (rates_of(), rates)
    )
    assert more - plain == pytest.approx(3 * 4 * 256 * 2 * 16 * NANO)


def test_a_header_without_matrices_has_no_speed():
    empty = replace(encoder_header(), tensors=())
    assert speed.predict(empty, rates_of(), prefill_threads=1, decode_threads=1) is None


def test_parts_of_other_names_are_no_measurement():
    rates = rates_of()
    renamed = replace(rates, onnx_parts=(Part("ad", 0.0), *rates.onnx_parts[1:]))
    found, why = onnx_speed.predict(folder_of(), renamed, threads=1)
    assert found is None
    assert "not measured" in why
