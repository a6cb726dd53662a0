"""The memory of encoders: exact sums, and the peaks of real processes, which are never above the plan."""

import pytest
from tiny_encoders import as_gguf, as_onnx

from edge import encoder_memory, gguf_header, onnx_folder, onnx_memory
from edge.bench.compare import ratio
from edge.bench.memory import Cell, memory
from edge.cli.bench_memory import row
from edge.engine import encoder
from edge.memory import MIB, vocabulary
from edge.tasks import stream


def test_the_batches_are_those_that_are_run():
    assert encoder_memory.BATCH == encoder.TOKENS
    assert onnx_memory.TOKENS == stream.BATCH_TOKENS


@pytest.mark.parametrize("workers", [1, 3])
def test_every_worker_has_logits_of_a_batch_that_nobody_reads(workers):
    header = gguf_header.read(as_gguf("bert-classifier"))
    width = header.get("{arch}.embedding_length", int)
    found = encoder_memory.of_gguf(header, 64, workers)
    assert found.logits_bytes == workers * 256 * 4 * (vocabulary(header) + width)
    assert found.weights_bytes == sum(tensor.bytes for tensor in header.tensors)
    assert encoder_memory.of_gguf(header, 512, workers).logits_bytes == 2 * found.logits_bytes


def test_an_onnx_batch_has_so_many_tokens_whatever_the_texts_length():
    folder = onnx_folder.read(as_onnx("bert-classifier"))
    config = folder.config
    heads, inner = config["num_attention_heads"], config["intermediate_size"]
    width = folder.width
    one, two = (onnx_memory.of_encoder(folder, 64, workers).compute_bytes for workers in (1, 2))
    attending, feeding = 512 * (2 * heads * 64 + 5 * width), 512 * (2 * inner + 3 * width)
    assert one == 4 * max(attending, feeding) + 5 * MIB // 2
    assert two == 2 * one


@pytest.mark.parametrize("made", [as_gguf, as_onnx])
def test_the_plan_is_not_below_a_real_encoders_peak(made):
    (cell,) = memory([str(made("bert-classifier"))], [1 << 20], threads=2)
    assert 0 <= cell.error < 0.2


def test_settings_are_texts_of_which_a_comparison_makes_no_ratios():
    cell = Cell("tiny", "F32", 256, 2, "f16", True, 2, 1, None)
    figures = row(cell).figures
    assert (figures["context"], figures["parallel"]) == ("256", "2")
    assert ratio(figures["context"], figures["context"]) is None
