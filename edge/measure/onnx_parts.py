"""What ONNX Runtime takes beside matrices: additions, GELU, norms, rounding, attention, and starting an operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np

from edge.errors import EngineError
from edge.measure.onnx import IR_VERSION, OPSETS, Add, Weight
from edge.measure.samples import interleaved, pace
from edge.onnx.session import onnxruntime, options
from edge.rates import Part

WIDTH, ROWS = 768, 128
COPIES, MANY = 8, 128  # of an operator; of one whose start alone is sought
TEXTS, TOKENS = 4, 128  # of attention
SIZES = (32, 64)  # elements of a head
SECONDS = 0.8  # for all
Chain = Callable[[Add, Weight, str], str]


@dataclass(frozen=True)
class Case:
    """An operator so many times, one after the other, on input of this shape."""

    shape: tuple[int, ...]
    chain: Chain
    copies: int = COPIES

    @property
    def elements(self) -> int:
        return int(np.prod(self.shape))


def onnx_parts() -> tuple[Part, ...]:
    """Every part by one thread; empty where onnxruntime is missing or lacks an operator."""
    try:
        runtime = onnxruntime()
    except EngineError:
        return ()
    try:
        calls = {name: partial(seconds, session(runtime, case), case.shape) for name, case in CASES.items()}
        found = {
            name: pace(times) / CASES[name].copies
            for name, times in interleaved(calls, seconds=SECONDS).items()
        }
    except MemoryError:
        raise
    except Exception as error:  # ONNX Runtime's classes have no common base
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        return ()
    return derived(found)


def derived(found: Mapping[str, float]) -> tuple[Part, ...]:
    """Parts from the seconds of one operator of each case: two sizes of heads tell a score from its elements."""
    per = {name: found[name] / CASES[name].elements for name in ("add", "gelu", "norm", "round")}
    small, large = SIZES
    scores = [found[f"heads of {size}"] * size / (TEXTS * TOKENS * TOKENS * WIDTH) for size in SIZES]
    look = max(0.0, scores[1] - scores[0]) / (large - small)
    parts = per | {"look": look, "score": max(0.0, scores[0] - small * look), "node": found["node"]}
    return tuple(Part(name, taken) for name, taken in parts.items())


def session(runtime: Any, case: Case) -> Any:
    return runtime.InferenceSession(
        model(case), sess_options=options(runtime, 1), providers=["CPUExecutionProvider"]
    )


def seconds(session: Any, shape: tuple[int, ...]) -> float:
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    start = perf_counter()
    session.run(None, {"x": x})
    return perf_counter() - start


def model(case: Case) -> bytes:
    """The case as a model whose last operator leaves one number, so that nothing is copied out."""
    import onnx
    from onnx import helper, numpy_helper

    nodes, weights = list[Any](), list[Any]()

    def add(operator: str, inputs: list[str], **attributes: Any) -> str:
        domain = "com.microsoft" if operator == "MultiHeadAttention" else ""
        name = f"{operator}{len(nodes)}"
        nodes.append(helper.make_node(operator, inputs, [name], domain=domain, **attributes))
        return name

    def weight(name: str, values: Any) -> str:
        name = f"{name}{len(weights)}"
        weights.append(numpy_helper.from_array(values, name))
        return name

    name = "x"
    for _ in range(case.copies):
        name = case.chain(add, weight, name)
    first = [weight("first", np.zeros(1, np.int64)), weight("end", np.ones(1, np.int64))]
    name = add("Slice", [name, *first])
    floats = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "part",
        [helper.make_tensor_value_info("x", floats, case.shape)],
        [helper.make_tensor_value_info(name, floats, None)],
        weights,
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    serialized: bytes = made.SerializeToString()
    return serialized


def vector(weight: Weight, value: float) -> str:
    return weight("v", np.full(WIDTH, value, np.float32))


def added(add: Add, weight: Weight, x: str) -> str:
    return add("Add", [x, vector(weight, 0.01)])


def gelu(add: Add, weight: Weight, x: str) -> str:
    return add("Gelu", [x])


def norm(add: Add, weight: Weight, x: str) -> str:
    return add("LayerNormalization", [x, vector(weight, 1.0), vector(weight, 0.0)], axis=-1)


def rounded(add: Add, weight: Weight, x: str) -> str:
    """As convert/onnx rounds activations by row, and back to floats."""
    step, middle = weight("step", np.float32(1 / 127)), weight("middle", np.uint8(128))
    last, least = weight("last", np.array([-1])), weight("least", np.float32(1e-30))
    largest = add("Max", [add("ReduceMax", [add("Abs", [x]), last], keepdims=1), least])
    even = add("Div", [x, largest])
    return add("DequantizeLinear", [add("QuantizeLinear", [even, step, middle]), step, middle])


def attention(heads: int) -> Chain:
    """As convert/onnx writes it: it adds the biases of the three, and masks what pads the texts."""

    def chain(add: Add, weight: Weight, x: str) -> str:
        biases = weight("biases", np.full(3 * WIDTH, 0.01, np.float32))
        mask = weight("mask", np.ones((TEXTS, TOKENS), np.int32))
        return add("MultiHeadAttention", [x, x, x, biases, mask], num_heads=heads)

    return chain


CASES = {
    "add": Case((ROWS, WIDTH), added),
    "gelu": Case((ROWS, WIDTH), gelu),
    "norm": Case((ROWS, WIDTH), norm),
    "round": Case((ROWS, WIDTH), rounded),
    **{f"heads of {size}": Case((TEXTS, TOKENS, WIDTH), attention(WIDTH // size)) for size in SIZES},
    "node": Case((1, WIDTH), added, MANY),
}
