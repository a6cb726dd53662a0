"""How fast ONNX Runtime multiplies at the levels that convert/onnx writes, on matrices of model shape."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import EngineError
from edge.measure.samples import interleaved, pace, spread
from edge.onnx.session import onnxruntime, options
from edge.rates import Kernel

WIDTHS = (768, 3072, 768, 3072, 768)  # one matrix after the other, as wide as BERT-base's and GPT-2's
WEIGHTS = sum(rows * columns for rows, columns in pairwise(WIDTHS))
# A step of decoding; a short prompt; a batch of texts, which shares its weights' reading
ROWS = (1, 128, 512)
BLOCK = 32  # weights that share a scale at int4
SECONDS = 0.5  # a level; three of them, with what their models take to make, stay below three seconds
OPSETS = {"": 20, "com.microsoft": 1}
IR_VERSION = 9  # the one of opset 20

Add = Callable[..., str]  # operator, inputs, attributes → the name of what it gives
Weight = Callable[[str, NDArray[Any]], str]  # keeps an array, gives its name
Product = Callable[[Add, Weight, str, int, int], str]  # (…, x, width of a row, rows of the matrix)


def onnx_rates(threads: int) -> tuple[Kernel, ...]:
    """fp32, int8 and int4 with one row and with many, on so many threads; empty where onnxruntime is missing, without
    the levels that it does not run.

    A level's time includes what goes with its matrices: at int8 the rounding of activations.
    """
    try:
        runtime = onnxruntime()
    except EngineError:
        return ()
    found: list[Kernel] = []
    # One after the other: a session's threads spin for some time after their work and would disturb another's
    for level, (bits, product) in LEVELS.items():
        try:
            found += timed(runtime, level, bits, product, threads)
        except MemoryError:
            raise
        except Exception as error:  # ONNX Runtime's classes have no common base
            if not type(error).__module__.startswith("onnxruntime"):
                raise
    return tuple(found)


def timed(runtime: Any, level: str, bits: float, product: Product, threads: int) -> list[Kernel]:
    """One level's kernels. Raises ONNX Runtime's exceptions where it does not run them."""
    session = runtime.InferenceSession(
        model(product), sess_options=options(runtime, threads), providers=["CPUExecutionProvider"]
    )

    def seconds(x: NDArray[Any]) -> float:
        start = perf_counter()
        session.run(None, {"x": x})
        return perf_counter() - start

    random = np.random.default_rng(0)
    calls = {rows: partial(seconds, random.standard_normal((rows, WIDTHS[0]), np.float32)) for rows in ROWS}
    return [
        Kernel(level, WIDTHS[0], threads, rows, pace(times) / WEIGHTS, bits, spread(times))
        for rows, times in interleaved(calls, seconds=SECONDS).items()
    ]


def model(product: Product) -> bytes:
    """A model of nothing but matrices, one after the other."""
    import onnx
    from onnx import helper, numpy_helper

    nodes, weights = list[Any](), list[Any]()

    def add(operator: str, inputs: list[str], **attributes: Any) -> str:
        domain = "com.microsoft" if operator in ("MatMulNBits", "MatMulIntegerToFloat") else ""
        name = f"{operator}{len(nodes)}"
        nodes.append(helper.make_node(operator, inputs, [name], domain=domain, **attributes))
        return name

    def weight(name: str, values: NDArray[Any]) -> str:
        name = f"{name}{len(weights)}"
        weights.append(numpy_helper.from_array(values, name))
        return name

    name = "x"
    for width, out in pairwise(WIDTHS):
        name = product(add, weight, name, width, out)
    floats = onnx.TensorProto.FLOAT
    sizes: list[str | int | None] = ["rows", WIDTHS[0]]
    graph = helper.make_graph(
        nodes,
        "matrices",
        [helper.make_tensor_value_info("x", floats, sizes)],
        [helper.make_tensor_value_info(name, floats, sizes)],
        weights,
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    serialized: bytes = made.SerializeToString()
    return serialized


def fp32(add: Add, weight: Weight, x: str, width: int, out: int) -> str:
    values = np.random.default_rng(0).standard_normal((width, out), np.float32) / 30
    return add("MatMul", [x, weight("w", values)])


def int8(add: Add, weight: Weight, x: str, width: int, out: int) -> str:
    """Weights by output channel within ±64; each row of activations brought to ±1, and rounded."""
    values = np.random.default_rng(0).integers(-64, 65, (width, out), np.int8)
    scales = np.full(out, 1e-3, np.float32)
    step, middle = weight("step", np.float32(1 / 127)), weight("middle", np.uint8(128))
    last, least = weight("last", np.array([-1])), weight("least", np.float32(1e-30))
    largest = add("Max", [add("ReduceMax", [add("Abs", [x]), last], keepdims=1), least])
    rounded = add("QuantizeLinear", [add("Div", [x, largest]), step, middle])
    y = add("MatMulIntegerToFloat", [rounded, weight("w", values), step, weight("scales", scales), middle])
    return add("Mul", [y, largest])


def int4(add: Add, weight: Weight, x: str, width: int, out: int) -> str:
    """Weights by block, activations in 8 bits within the kernel."""
    blocks = width // BLOCK
    values = np.random.default_rng(0).integers(0, 256, (out, blocks, BLOCK // 2), np.uint8)
    scales = np.full((out, blocks), 5e-3, np.float32)
    inputs = [x, weight("w", values), weight("scales", scales)]
    return add("MatMulNBits", inputs, K=width, N=out, bits=4, block_size=BLOCK, accuracy_level=4)


LEVELS: dict[str, tuple[float, Product]] = {
    "fp32": (32.0, fp32),
    "int8": (8.0, int8),
    "int4": (4 + 32 / BLOCK, int4),
}
