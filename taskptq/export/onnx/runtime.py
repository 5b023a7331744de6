"""Run ONNX graphs in ONNX Runtime while they are made and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from taskptq.export.onnx.errors import OnnxExportError
from taskptq.export.onnx.graph import Array, Graph

# Versions from which QuantizeLinear knows codes of 16 bits.
CODES_OPSET = 21
CODES_IR_VERSION = 10
Feeds = Mapping[str, Array]


def session(
    model: bytes | str | Path,
    *,
    optimize: bool = True,
    integers: bool = True,
    save: str | Path | None = None,
) -> Any:
    """Return a session on one thread of the CPU.

    Args:
        model: File, or its contents.
        optimize: Whether the runtime fuses operators into integer ones.
        integers: Whether these may be integer ones; if not, other float
            kernels than without optimization compute the same.
        save: File that receives the optimized graph.

    Raises:
        OnnxExportError: If ONNX Runtime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise OnnxExportError(
            'ONNX Runtime is not installed: pip install "taskptq[onnx]"'
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not optimize:
        options.graph_optimization_level = (
            onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        )
    if not integers:
        options.add_session_config_entry('session.disable_quant_qdq', '1')
    if save is not None:
        options.optimized_model_filepath = str(save)
    content = str(model) if isinstance(model, Path) else model
    return onnxruntime.InferenceSession(
        content, options, providers=['CPUExecutionProvider']
    )


def raise_opset(model: onnx.ModelProto) -> None:
    """Let a traced graph hold codes of 16 bits, as its file will.

    Args:
        model: Graph of the last version that is traced; changed in place.
            Older versions have no such codes, and stay.
    """
    for entry in model.opset_import:
        if not entry.domain and entry.version == CODES_OPSET - 1:
            entry.version = CODES_OPSET
            model.ir_version = max(model.ir_version, CODES_IR_VERSION)


def inner_session(graph: Graph, names: Sequence[str]) -> Any:
    """Return a session that returns tensors inside a graph.

    Each operator is computed as it stands, without optimization.

    Args:
        graph: Graph of standard operators; left as it is.
        names: Tensors to return, in this order.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    kinds = {value.data_type for value in graph.constants.values()}
    if onnx.TensorProto.INT16 in kinds:
        raise_opset(model)
    copy = Graph(model)
    copy.constants = dict(graph.constants)
    del copy.proto.output[:]
    copy.proto.output.extend(
        helper.make_empty_tensor_value_info(name) for name in names
    )
    copy.outputs = list(names)
    copy.finish()
    return session(model.SerializeToString(), optimize=False)
