"""ONNX Runtime on the CPU: a checked file opened, and its refusals in one line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import BadONNX, EngineError
from edge.machine import host
from edge.onnx.check import Graph, check

Array = NDArray[Any]
BACKEND = "onnxruntime-cpu"
# Each is a little slower on a CPU than the operators it takes the place of (bench/LOG.md)
SLOW_FUSIONS = ("SkipLayerNormFusion", "BiasGeluFusion")
QUIET = 4  # only what ends the process: refusals come as exceptions, with the same words
# "[ONNXRuntimeError] : 10 : INVALID_GRAPH : Load model from /…/model.onnx failed:"
PREFIX = re.compile(r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : (?:Load model from .*? failed:)?")


class Session:
    """A checked ONNX file, loaded. `run` may be called from several threads at once.

    `graph` is what the file takes and gives. Raises BadONNX for a file that is not to be opened or that ONNX Runtime
    refuses, EngineError where onnxruntime is missing.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        runtime = onnxruntime()
        self.graph: Graph = check(path)
        self._outputs = [value.name for value in self.graph.outputs]
        try:
            self._session: Any = runtime.InferenceSession(
                str(path),
                sess_options=options(runtime, threads),
                providers=["CPUExecutionProvider"],
                disabled_optimizers=[*SLOW_FUSIONS],
            )
        except MemoryError:
            raise
        except Exception as error:  # its classes have no common base
            raise BadONNX(
                f"ONNX Runtime {runtime.__version__} does not load {path.name}: {reason(error)}",
                hint="a newer onnxruntime may know it, or convert the checkpoint",
            ) from None

    def run(self, feeds: Mapping[str, Array], outputs: list[str] | None = None) -> list[Array]:
        """The outputs named, or all. Raises EngineError where ONNX Runtime fails or the session is closed."""
        session = self._session
        if session is None:
            raise EngineError("the model is closed", hint="load it again")
        try:
            found: list[Array] = session.run(outputs or self._outputs, feeds)
        except MemoryError:
            raise
        except Exception as error:
            raise EngineError(
                f"ONNX Runtime failed: {reason(error)}", hint="smaller batches need less"
            ) from None
        return found

    def binding(self) -> Any:
        """Inputs and outputs bound to memory of the caller's (onnxruntime.IOBinding), for `run_bound`."""
        return self._session.io_binding()

    def run_bound(self, binding: Any) -> None:
        """Run into the bound outputs. Raises EngineError where ONNX Runtime fails or the session is closed."""
        if self._session is None:
            raise EngineError("the model is closed", hint="load it again")
        try:
            self._session.run_with_iobinding(binding)
        except MemoryError:
            raise
        except Exception as error:
            raise EngineError(
                f"ONNX Runtime failed: {reason(error)}", hint="a smaller --ctx needs less"
            ) from None

    def close(self) -> None:
        """Free the memory; safe to call twice."""
        self._session = None


def onnxruntime() -> Any:
    """The module, without its log or its reports to anybody. Raises EngineError where it does not load."""
    try:
        import onnxruntime as runtime  # type: ignore[import-untyped]
    except (ImportError, OSError) as error:
        raise EngineError(
            f"onnxruntime does not load ({error})",
            hint="reinstall it: pip install --force-reinstall onnxruntime",
        ) from error
    runtime.set_default_logger_severity(QUIET)
    runtime.disable_telemetry_events()
    return runtime


def options(runtime: Any, threads: int | None) -> Any:
    """How every session runs: in order, on `threads` or one a core."""
    chosen = runtime.SessionOptions()
    chosen.intra_op_num_threads = threads or host().cpu.performance_cores
    chosen.inter_op_num_threads = 1
    chosen.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    chosen.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    chosen.log_severity_level = QUIET
    # It remembers where every tensor went for each shape seen, and texts come in hundreds of shapes
    chosen.enable_mem_pattern = False
    return chosen


def reason(error: Exception) -> str:
    """ONNX Runtime's words on one line without its file names and prefixes."""
    text = PREFIX.sub("", " ".join(str(error).split()))
    return re.sub(r"\S*/onnxruntime/core/\S+ ", "", text).strip()[:200] or type(error).__name__


def float32(values: Array) -> Array:
    """As float32, copied only where it is another type."""
    return np.asarray(values, np.float32)
