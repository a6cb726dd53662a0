"""The encodings of ONNX levels: what comes back is near, and ONNX Runtime reads it so."""

import numpy as np
import pytest

from edge.convert.onnx import encode
from edge.convert.onnx.values import Handle, Value, stacked


def matrix(rows, columns, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def opened(stored, scales, bits, width):
    """The weights that blocks stand for."""
    values = np.stack([stored & 15, stored >> 4], -1).reshape(*stored.shape[:2], -1) if bits == 4 else stored
    weights = (values.astype(np.float32) - (1 << bits - 1)) * scales[..., None]
    return weights.reshape(len(stored), -1)[:, :width]


def distance(found, wanted):
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


@pytest.mark.parametrize(("bits", "most"), [(8, 0.006), (4, 0.09)])
@pytest.mark.parametrize("width", [64, 80])
def test_blocks_come_back_near_and_rows_need_no_whole_blocks(bits, most, width):
    weight = matrix(24, width)
    weight[3] = 0
    stored, scales = encode.blocks(weight, bits, 32)
    assert stored.shape == (24, -(-width // 32), 32 * bits // 8)
    found = opened(stored, scales, bits, width)
    assert distance(found, weight) < most
    assert not found[3].any()


def test_blocks_are_the_same_however_many_are_encoded_at_once():
    weight = matrix(2 * encode.TOGETHER + 3, 40)
    stored, scales = encode.blocks(weight, 4, 32)
    rows = [0, encode.TOGETHER // 2, encode.TOGETHER, len(weight) - 1]
    alone = encode.blocks(weight[rows], 4, 32)
    assert np.array_equal(stored[rows], alone[0])
    assert np.array_equal(scales[rows], alone[1])


def test_searched_scales_lose_less_than_those_of_the_largest_value():
    weight = matrix(64, 256)
    stored, scales = encode.blocks(weight, 4, 32)
    groups = weight.reshape(-1, 32)
    plain = np.abs(groups).max(axis=1, keepdims=True) / 7
    usual = (np.rint(groups / plain) * plain).reshape(weight.shape)
    assert distance(opened(stored, scales, 4, 256), weight) < 0.9 * distance(usual, weight)


def test_channels_leave_a_bit_free_and_rows_do_not():
    weight = matrix(16, 300)
    weight[5] = 0
    values, scales = encode.channels(weight)
    assert (values.dtype, values.min() >= -64, values.max() <= 64) == (np.int8, True, True)
    assert scales.shape == (16,)
    assert distance(values * scales[:, None], weight) < 0.015
    values, scales = encode.rows(weight)
    assert np.abs(values.astype(int)).max() == 127
    assert distance(values * scales, weight) < 0.008
    assert not values[5].any()


def test_a_handle_is_changed_without_being_read():
    read = []

    def weights():
        read.append(1)
        return np.arange(6, dtype=np.float32).reshape(3, 2)

    one = Handle("w", (3, 2), weights)
    changed = stacked([(1 + one)[1:], 2 * one])
    assert (changed.shape, one.T.shape, len(one), one.ndim) == ((5, 2), (2, 3), 3, 2)
    assert changed.name == "w + 1[1:3:1] | w * 2"
    assert not read
    assert changed.read().tolist() == [[3, 4], [5, 6], [0, 2], [4, 6], [8, 10]]


def test_numpy_leaves_operations_to_the_values_they_are_with():
    made = []
    x = Value(made, "input", (), {})
    for value, kind in (
        (np.float32(2) * x, "multiply"),
        (np.ones(3) + x, "add"),
        (x / 2, "divide"),
        (x - 1, "subtract"),
    ):
        assert isinstance(value, Value)
        assert value.kind == kind
    assert [value.index for value in made] == [0, 1, 2, 3, 4]
