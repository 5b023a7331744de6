"""Time single layers in ONNX Runtime, in integers and in floats.

Convolutions and linears are built as ONNX graphs of one layer each, with the
shapes that a model calls them with: as integers, between grids; and as floats
that convert on both sides, as a layer does that stays float among integers.
Other products are not timed.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from taskptq.core.progress import Progress
from taskptq.export.runtime import runtime_package
from taskptq.modules.base import quant_modules

__all__ = ['FLOAT', 'INTEGER', 'measure_layers']

Forward = Callable[[nn.Module, Any], Any]

# Keys of a table: bits of the input x bits of the weight.
INTEGER, FLOAT = '8x8', 'floatxfloat'
WARMUP, RUNS = 2, 7
OPSET = 21
# Any scales do: they do not change how long a layer takes.
ACTIVATION_SCALE, WEIGHT_SCALE = 0.05, 0.01


@dataclass(frozen=True, kw_only=True)
class Call:
    """One layer's work for a call; layers of equal work are timed once.

    Args:
        input_shape: Shape of the input, (B, C, H, W) or (rows, C).
        weight_shape: Of a convolution (out, in / groups, kH, kW), of a linear
            (out, in).
        attributes: Attributes of Conv, sorted; empty for a linear.
    """

    input_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    attributes: tuple[tuple[str, Any], ...] = ()


def measure_layers(
    model: nn.Module,
    batch: Any,
    *,
    forward: Forward,
    num_images: int = 1,
    threads: int = 1,
) -> dict[str, Any]:
    """Time the layers of a prepared model for one image.

    Args:
        model: Prepared model in evaluation mode.
        batch: Collated batch of some images.
        forward: Runs the model on one batch.
        num_images: Images in the batch.
        threads: Threads of the runtime; one is timed by the processor's
            clock, which other processes disturb less than that of the wall.

    Returns:
        ``runtime``, ``threads``, ``float_ms`` (all layers of the float model,
        without conversions) and ``layers``: name -> milliseconds under
        ``8x8`` and, with conversions on both sides, ``floatxfloat``.

    Raises:
        OnnxFileError: If onnx or onnxruntime is not installed.
    """
    for package in ('onnx', 'onnxruntime'):
        runtime_package(package)
    calls = record_calls(model, batch, forward=forward, num_images=num_images)
    different = {call for counted in calls.values() for call in counted}
    times: dict[Call, dict[str, float]] = {}
    with Progress('time layers', total=len(different)) as shown:
        for call in different:
            times[call] = _time(call, threads=threads)
            shown.advance()
    return {
        'runtime': 'onnxruntime',
        'threads': threads,
        'float_ms': round(_sum(calls.values(), times, 'plain'), 4),
        'layers': {
            name: {
                key: round(_sum([counted], times, key), 4)
                for key in (INTEGER, FLOAT)
            }
            for name, counted in calls.items()
        },
    }


def _sum(
    counters: Iterable[Mapping[Call, int]],
    times: Mapping[Call, Mapping[str, float]],
    key: str,
) -> float:
    return sum(
        times[call][key] * number
        for counted in counters
        for call, number in counted.items()
    )


def record_calls(
    model: nn.Module, batch: Any, *, forward: Forward, num_images: int
) -> dict[str, Counter[Call]]:
    """Run a model and count the calls of its convolutions and linears.

    Args:
        model: Prepared model.
        batch: Collated batch.
        forward: Runs the model on one batch.
        num_images: Images in the batch; calls are of one.
    """
    calls: dict[str, Counter[Call]] = {}
    handles = []
    for name, module in quant_modules(model):
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue

        def before(
            module: nn.Module, args: tuple[Any, ...], name: str = name
        ) -> None:
            if args and isinstance(args[0], Tensor):
                call = _call_of(module, args[0], num_images=num_images)
                calls.setdefault(name, Counter())[call] += 1

        handles.append(module.register_forward_pre_hook(before))
    try:
        with torch.no_grad():
            forward(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _call_of(module: nn.Module, x: Tensor, *, num_images: int) -> Call:
    if isinstance(module, nn.Linear):
        rows = x.numel() // module.in_features
        return Call(
            input_shape=(max(1, rows // num_images), module.in_features),
            weight_shape=tuple(module.weight.shape),
        )
    assert isinstance(module, nn.Conv2d)
    images = max(1, x.shape[0] // num_images) if x.dim() == 4 else 1
    before, after = _padding(module)
    return Call(
        input_shape=(images, *x.shape[-3:]),
        weight_shape=tuple(module.weight.shape),
        attributes=(
            ('dilations', tuple(module.dilation)),
            ('group', module.groups),
            ('pads', (*before, *after)),
            ('strides', tuple(module.stride)),
        ),
    )


def _padding(module: nn.Conv2d) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return what is padded before and after, (height, width) each."""
    if not isinstance(module.padding, str):
        same = tuple(module.padding)
        return same, same
    if module.padding == 'valid':
        return (0, 0), (0, 0)
    whole = [
        dilation * (size - 1)
        for dilation, size in zip(
            module.dilation, module.kernel_size, strict=True
        )
    ]
    before = tuple(one // 2 for one in whole)
    return before, tuple(a - b for a, b in zip(whole, before, strict=True))


def _time(call: Call, *, threads: int) -> dict[str, float]:
    """Return the median milliseconds of a call, in each form."""
    runtime = runtime_package('onnxruntime')
    clock = time.process_time if threads == 1 else time.perf_counter
    found = {}
    for key in (INTEGER, FLOAT, 'plain'):
        kind = np.float32 if key == 'plain' else np.uint8
        feed = {'x': np.ones(call.input_shape, kind)}
        session = runtime.InferenceSession(
            _graph(call, key),
            _options(key, threads=threads),
            providers=['CPUExecutionProvider'],
        )
        seconds = []
        for number in range(WARMUP + RUNS):
            start = clock()
            session.run(None, feed)
            if number >= WARMUP:
                seconds.append(clock() - start)
        found[key] = 1000 * statistics.median(seconds)
    return found


def _options(key: str, *, threads: int) -> Any:
    options = runtime_package('onnxruntime').SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if key == FLOAT:
        # Else it would quantize the weight by itself, and run integers.
        options.add_session_config_entry('session.disable_quant_qdq', '1')
    return options


def _graph(call: Call, key: str) -> bytes:
    """Return one layer as an ONNX file: 'plain', or with grids around."""
    onnx = runtime_package('onnx')
    make = onnx.helper.make_node
    shape = call.weight_shape if call.attributes else call.weight_shape[::-1]
    dtype = np.int8 if key == INTEGER else np.float32
    values = {
        'w': np.ones(shape, dtype),
        'sw': np.float32(WEIGHT_SCALE),
        'zw': np.int8(0),
        's': np.float32(ACTIVATION_SCALE),
        'z': np.uint8(128),
    }
    nodes: list[Any] = []
    read, weight, out = 'x', 'w', 'y'
    if key != 'plain':
        nodes.append(make('DequantizeLinear', ['x', 's', 'z'], ['xf']))
        read, out = 'xf', 'yf'
    if key == INTEGER:
        nodes.append(make('DequantizeLinear', ['w', 'sw', 'zw'], ['wf']))
        weight = 'wf'
    operator = 'Conv' if call.attributes else 'MatMul'
    settings = dict(call.attributes)
    nodes.append(make(operator, [read, weight], [out], **settings))
    if key != 'plain':
        nodes.append(make('QuantizeLinear', ['yf', 's', 'z'], ['y']))
    kind = onnx.TensorProto.FLOAT if key == 'plain' else onnx.TensorProto.UINT8
    return _serialized(nodes, values, shape=call.input_shape, kind=kind)


def _serialized(
    nodes: Sequence[Any],
    values: Mapping[str, Any],
    *,
    shape: Sequence[int],
    kind: int,
) -> bytes:
    """Return the file of a graph from 'x' to 'y', of this type."""
    onnx = runtime_package('onnx')
    used = {name for node in nodes for name in node.input}
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        list(nodes),
        'layer',
        [info('x', kind, shape)],
        [info('y', kind, [None] * len(shape))],
        [
            onnx.numpy_helper.from_array(np.asarray(value), name)
            for name, value in values.items()
            if name in used
        ],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid('', OPSET)]
    )
    model.ir_version = 10
    data: bytes = model.SerializeToString()
    return data
