"""The predicted speed: what each part of a step adds to it, and what is not predicted."""

from dataclasses import replace

import pytest

from edge.gguf_header import Header, Tensor
from edge.rates import Attention, Bandwidth, Kernel, Key, Layer, Rates, Scaling
from edge.speed import bytes_of, predict, step_seconds, touched

BILLION = 1e9
WEIGHT, ROW = 1e-10, 1e-12  # seconds a weight takes at one row; more for each row
HEADS, WIDTH, LAYERS, INNER = 4, 256, 2, 512


def rates_of(kinds=("Q4_0", "F16"), threads=(1,), **others):
    """Rates in round numbers: a layer, a look and a step take nothing unless asked."""
    kernels = tuple(
        Kernel(kind, 512, count, rows, (WEIGHT + ROW * rows) / count, 4.5, 0.0)
        for kind in kinds
        for count in threads
        for rows in (1, 8, 256)
    )
    parts = {
        "layers": tuple(Layer(64, count, rows, 0.0) for count in threads for rows in (1, 256)),
        "attention": tuple(Attention(count, rows, 0.0, 0.0) for count in threads for rows in (1, 256)),
        "scaling": tuple(Scaling(count, count / 4, count / 4) for count in (1, 2, 4)),
        "step_seconds": 0.0,
        **others,
    }
    return Rates(
        key=Key("a CPU", 4, "1", "1", 1),
        bandwidth=(Bandwidth(1, 10.0, 9.0, 11.0),),
        kernels=kernels,
        prefill_threads=1,
        decode_threads=1,
        noise=0.0,
        measured_at=0.0,
        seconds=1.0,
        **parts,
    )


def header_of(kind="Q4_0", *, tied=False, metadata=None, more=()):
    tensors = [("token_embd.weight", (WIDTH, 1000)), *([] if tied else [("output.weight", (WIDTH, 1000))])]
    for layer in range(LAYERS):
        tensors.append((f"blk.{layer}.attn_norm.weight", (WIDTH,)))
        tensors.append((f"blk.{layer}.attn_q.weight", (WIDTH, WIDTH)))
        tensors.append((f"blk.{layer}.ffn_up.weight", (WIDTH, INNER)))
    made = tuple(
        Tensor(name, shape, kind, 0, int(4.5 / 8 * shape[0] * (shape[1] if len(shape) > 1 else 1)))
        for name, shape in [*tensors, *more]
    )
    facts = {
        "general.architecture": "llama",
        "llama.block_count": LAYERS,
        "llama.embedding_length": WIDTH,
        "llama.attention.head_count": HEADS,
        **(metadata or {}),
    }
    return Header(3, facts, made, 32, 0, sum(tensor.bytes for tensor in made))


LAYER_WEIGHTS = WIDTH * WIDTH + WIDTH * INNER
HEAD_WEIGHTS = WIDTH * 1000


def speed(header, rates, **asked):
    return predict(header, rates, **{"prefill_threads": 1, "decode_threads": 1, **asked})


@pytest.mark.parametrize("tied", [False, True])
def test_decoding_multiplies_every_matrix_once_and_looks_the_embedding_up(tied):
    found = speed(header_of(tied=tied), rates_of())
    weights = LAYERS * LAYER_WEIGHTS + HEAD_WEIGHTS
    assert 1 / found.decode_tps == pytest.approx(weights * (WEIGHT + ROW))


def test_prefill_computes_one_row_of_logits_and_of_the_last_feed_forward():
    found = speed(header_of(), rates_of(), prompt=256)
    many = (LAYERS - 1) * LAYER_WEIGHTS + WIDTH * WIDTH
    one = WIDTH * INNER + HEAD_WEIGHTS
    assert found.ttft_s == pytest.approx(many * (WEIGHT + 256 * ROW) + one * (WEIGHT + ROW))
    assert found.prefill_tps == pytest.approx(256 / found.ttft_s)
    assert found.prompt_tokens == 256


def test_a_long_prompt_is_cut_into_batches():
    short, long = (speed(header_of(), rates_of(), prompt=prompt).ttft_s for prompt in (512, 1024))
    # No row of the first batch needs logits; beyond the largest count that was measured it goes in proportion
    first = ((LAYERS - 1) * LAYER_WEIGHTS + WIDTH * WIDTH) * 2 * (WEIGHT + 256 * ROW)
    assert long - short == pytest.approx(first)


def test_depth_adds_looks_and_a_window_bounds_them():
    rates = rates_of(attention=(Attention(1, 1, 1e-9, 0.0), Attention(1, 256, 1e-9, 0.0)))
    sizes = 2 * WIDTH // HEADS
    times = [1 / speed(header_of(), rates, depth=depth).decode_tps for depth in (0, 1000)]
    assert times[1] - times[0] == pytest.approx(1000 * LAYERS * HEADS * sizes * 1e-9)
    windowed = header_of(
        metadata={
            "llama.attention.sliding_window": 100,
            "llama.attention.sliding_window_pattern": (True, False),
        }
    )
    times = [1 / speed(windowed, rates, depth=depth).decode_tps for depth in (0, 1000)]
    assert times[1] - times[0] == pytest.approx((1000 + 99) * HEADS * sizes * 1e-9)


def test_heads_of_keys_and_values_take_their_own_share():
    rates = rates_of(attention=(Attention(1, 1, 0.0, 1e-9), Attention(1, 256, 0.0, 1e-9)))
    header = header_of(metadata={"llama.attention.head_count_kv": 1})
    times = [1 / speed(header, rates, depth=depth).decode_tps for depth in (0, 1000)]
    assert times[1] - times[0] == pytest.approx(1000 * LAYERS * 1 * 2 * WIDTH // HEADS * 1e-9)


def test_layers_and_the_step_add_what_they_were_measured_with():
    rates = rates_of(layers=(Layer(64, 1, 1, 1e-3), Layer(512, 1, 1, 8e-3)), step_seconds=0.5)
    plain = 1 / speed(header_of(), rates_of()).decode_tps
    width = 1e-3 + 7e-3 * (WIDTH - 64) / (512 - 64)
    assert 1 / speed(header_of(), rates).decode_tps - plain == pytest.approx(LAYERS * width + 0.5)


def test_several_sequences_share_the_reading_of_weights():
    one, eight = (speed(header_of(), rates_of(), rows=rows).decode_tps for rows in (1, 8))
    assert eight / one == pytest.approx(8 * (WEIGHT + ROW) / (WEIGHT + 8 * ROW))


def test_counts_of_threads_that_were_not_measured_follow_the_curve():
    found = [speed(header_of(), rates_of(), decode_threads=count).decode_tps for count in (1, 2, 4)]
    assert found[1] == pytest.approx(2 * found[0])
    assert found[2] == pytest.approx(4 * found[0])


def test_measured_counts_of_threads_are_taken_as_measured():
    rates = rates_of(threads=(1, 3))
    found = [speed(header_of(), rates, prefill_threads=count).prefill_tps for count in (1, 3)]
    assert found[1] == pytest.approx(3 * found[0])


def test_the_bound_is_the_larger_part_and_the_fraction_that_of_the_limit():
    read = header_of().tensors
    slow = speed(header_of(), rates_of())
    bytes_read = sum(tensor.bytes for tensor in read if len(tensor.shape) > 1) - int(4.5 / 8 * HEAD_WEIGHTS)
    assert slow.decode_fraction == pytest.approx(bytes_read / (10 * BILLION) * slow.decode_tps)
    assert slow.decode_bound == "bandwidth"  # 4.5 bits in 0.1 ns are 5.6 of 10 GB/s
    wide = replace(rates_of(), bandwidth=(Bandwidth(1, 100.0, 90.0, 110.0),))
    quick = speed(header_of(), wide)
    assert quick.decode_bound == "arithmetic"
    elements = sum(tensor.elements for tensor in read if len(tensor.shape) > 1) - HEAD_WEIGHTS
    assert quick.decode_fraction == pytest.approx(2 * elements * quick.decode_tps / wide.peak_arithmetic)
    assert slow.prefill_bound == "arithmetic"
    assert 0 < slow.prefill_fraction <= 1


def test_of_a_mixtures_experts_those_in_use_count():
    experts = ("blk.0.ffn_up_exps.weight", (WIDTH, INNER, 8))
    mixed = header_of(metadata={"llama.expert_count": 8, "llama.expert_used_count": 2}, more=[experts])
    more = 1 / speed(mixed, rates_of()).decode_tps - 1 / speed(header_of(), rates_of()).decode_tps
    assert more == pytest.approx(2 * WIDTH * INNER * (WEIGHT + ROW))


def test_a_type_that_was_not_measured_is_not_predicted():
    assert speed(header_of("Q6_K"), rates_of()) is None


@pytest.mark.parametrize("key", ["llama.ssm.state_size", "llama.wkv.head_size", "llama.shortconv.l_cache"])
def test_recurrent_layers_are_not_predicted(key):
    assert speed(header_of(metadata={key: 16}), rates_of()) is None


def test_a_hypothetical_file_is_predicted_from_its_tensors():
    header = header_of()
    other = replace(header, tensors=tuple(replace(tensor, type="F16") for tensor in header.tensors))
    fast = rates_of(kinds=("Q4_0",)).kernels
    slow = tuple(replace(kernel, type="F16", seconds=3 * kernel.seconds) for kernel in fast)
    rates = rates_of(kinds=("Q4_0",))
    rates = replace(rates, kernels=(*fast, *slow))
    assert speed(header, rates).decode_tps == pytest.approx(3 * speed(other, rates).decode_tps)


def test_a_step_without_logits_has_no_head():
    with_head, without = (
        step_seconds(header_of(), rates_of(), 1, 4, range(4), outputs=outputs) for outputs in (1, 0)
    )
    assert with_head - without == pytest.approx((HEAD_WEIGHTS + WIDTH * INNER) * (WEIGHT + ROW))


def mixed(**facts):
    experts = ("blk.0.ffn_up_exps.weight", (WIDTH, INNER, 128))
    return header_of(
        metadata={"llama.expert_count": 128, "llama.expert_used_count": 8, **facts}, more=[experts]
    )


def test_sequences_at_once_read_most_of_a_mixtures_experts_each_for_itself():
    """Of 128 experts with 8 in use, eight rows are expected to touch 51.6."""
    rates, header = rates_of(), mixed()
    (tensor,) = [tensor for tensor in header.tensors if "_exps" in tensor.name]
    share, each = touched(header, tensor, 8)
    assert 128 * share == pytest.approx(128 * (1 - (120 / 128) ** 8))
    assert 128 * share * each == pytest.approx(8 * 8)
    assert touched(header, tensor, 1) == (8 / 128, 1)
    few = mixed(**{"llama.expert_count": 60, "llama.expert_used_count": 4})
    assert touched(few, tensor, 1)[1] == 1  # and not nearly, as other rates would be asked
    one, eight = (
        step_seconds(header, rates, 1, rows, (0,) * rows, outputs=rows)
        - step_seconds(header_of(), rates, 1, rows, (0,) * rows, outputs=rows)
        for rows in (1, 8)
    )
    assert eight == pytest.approx(one * 128 * share / 8, rel=0.01)


def test_a_prompt_reads_nearly_all_experts():
    header = mixed()
    (tensor,) = [tensor for tensor in header.tensors if "_exps" in tensor.name]
    others = bytes_of(header, 512) - bytes_of(header_of(), 512)
    assert others == pytest.approx(tensor.bytes, rel=1e-6)


def test_a_gguf_encoder_reads_no_longer_texts_than_it_is_told_to():
    facts = {"general.architecture": "bert", "bert.block_count": LAYERS, "bert.embedding_length": WIDTH}
    facts |= {"bert.attention.head_count": HEADS, "bert.context_length": 512, "edge.max_tokens": 32}
    header = replace(header_of(), metadata=facts)
    assert predict(header, rates_of(), prefill_threads=1, decode_threads=1).prompt_tokens == 32
