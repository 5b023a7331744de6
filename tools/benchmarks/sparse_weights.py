"""What zeros in weights gain in OpenVINO.

Its CPU plugin may keep the int8 weights of matrix products packed and unpack
them on the way to the matrix units (``CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE``,
on CPUs with AMX). Both ways run in turns, and have to give the same bits.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

PROPERTY = 'CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE'
# Weights with at least so many zeros are packed; 1 packs none.
RATE = 0.3
WIDTHS, ROWS, ZEROS, DEPTH = (1024, 2048), (1, 64), (0.5, 0.8, 0.9), 4
Array = np.ndarray[Any, Any]


def drawn_layers(*, width: int, zeros: float, depth: int = DEPTH) -> bytes:
    """Return an ONNX file of linear layers with int8 weights and inputs.

    Args:
        width: Inputs and outputs of each.
        zeros: Share of the weights that are 0.
        depth: Number of layers.
    """
    generator = np.random.default_rng(0)
    constants = {'scale': np.float32(0.02), 'zero': np.uint8(128)}
    nodes, x = [], 'x'
    for number in range(depth):
        weight = generator.integers(-127, 128, (width, width)).astype(np.int8)
        weight[generator.random(weight.shape) < zeros] = 0
        own = [f'w{number}', f'w_scale{number}', f'w_zero{number}']
        constants |= {
            own[0]: weight,
            own[1]: np.full(width, 1e-3, np.float32),
            own[2]: np.zeros(width, np.int8),
        }
        codes, values, out = (f'{name}{number}' for name in ('q', 'd', 'y'))
        grid = ['scale', 'zero']
        nodes += [
            helper.make_node('QuantizeLinear', [x, *grid], [codes]),
            helper.make_node('DequantizeLinear', [codes, *grid], [values]),
            helper.make_node('DequantizeLinear', own, [own[0] + 'd'], axis=0),
            helper.make_node('Gemm', [values, own[0] + 'd'], [out], transB=1),
        ]
        x = out
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ['N', width])
        for name in ('x', x)
    ]
    graph = helper.make_graph(
        nodes,
        'layers',
        ports[:1],
        ports[1:],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    opset = [helper.make_opsetid('', 20)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def compiled(
    content: bytes | str, shapes: Sequence[Sequence[int]] | None
) -> tuple[dict[str, Any], int]:
    """Compile a model in both ways.

    Args:
        content: ONNX file, or its path.
        shapes: Sizes of the inputs; None are those of the file, 1 if free.

    Returns:
        'dense' and 'packed', and how many layers are packed.
    """
    import openvino

    core = openvino.Core()
    model = core.read_model(content)
    model.reshape(
        {
            port.any_name: list(shape)
            for port, shape in zip(
                model.inputs, shapes or map(_shape, model.inputs), strict=True
            )
        }
    )
    settings = {
        'INFERENCE_NUM_THREADS': 1,
        'NUM_STREAMS': 1,
        'INFERENCE_PRECISION_HINT': 'f32',
    }
    found = {
        name: core.compile_model(model, 'CPU', {**settings, PROPERTY: rate})
        for name, rate in (('dense', 1.0), ('packed', RATE))
    }
    kernels = [
        node.get_rt_info()['primitiveType'].value
        for node in found['packed'].get_runtime_model().get_ops()
    ]
    return found, sum('sparse' in kernel for kernel in kernels)


def _shape(port: Any) -> list[int]:
    return [
        1 if size.is_dynamic else size.get_length()
        for size in port.partial_shape
    ]


def in_turns(
    models: Mapping[str, Any], *, repeats: int
) -> tuple[dict[str, float], bool]:
    """Return each one's median seconds, and whether the bits are the same.

    Seconds of CPU: on a busy machine others do not count.

    Args:
        models: Compiled models with the same inputs.
        repeats: Timed calls of each, after two to warm up.
    """
    generator = np.random.default_rng(1)
    feed = [
        generator.standard_normal(port.shape).astype(
            port.element_type.to_dtype()
        )
        for port in next(iter(models.values())).inputs
    ]
    seconds: dict[str, list[float]] = {name: [] for name in models}
    outputs: dict[str, list[Array]] = {}
    for turn in range(repeats + 2):
        for name, model in models.items():
            start = time.process_time()
            found = model(feed)
            if turn > 1:
                seconds[name].append(time.process_time() - start)
            outputs[name] = [one.copy() for one in found.to_tuple()]
    first, second = outputs.values()
    same = all(map(np.array_equal, first, second))
    return {name: statistics.median(v) for name, v in seconds.items()}, same


def measure(*, files: Sequence[str], repeats: int) -> dict[str, Any]:
    """Measure drawn layers, and files.

    Args:
        files: ONNX files of ``taskptq export --target openvino``.
        repeats: Timed calls of each.
    """
    cases: list[tuple[dict[str, Any], bytes | str, Any]] = [
        (
            {'model': f'{DEPTH} layers', 'width': w, 'zeros': z, 'rows': n},
            drawn_layers(width=w, zeros=z),
            [(n, w)],
        )
        for w in WIDTHS
        for z in ZEROS
        for n in ROWS
    ]
    cases += [({'model': Path(file).name}, file, None) for file in files]
    rows = []
    for name, content, shapes in cases:
        models, packed = compiled(content, shapes)
        seconds, same = in_turns(models, repeats=repeats)
        rows.append(
            {
                **name,
                'packed_layers': packed,
                'median_seconds': seconds,
                'speed': seconds['dense'] / seconds['packed'],
                'same_bits': same,
            }
        )
    return {'property': PROPERTY, 'rate': RATE, 'rows': rows}


def lines(result: Mapping[str, Any]) -> list[str]:
    """Return the result as text."""
    text = [f'{result["property"]}={result["rate"]} against 1, in turns:']
    for row in result['rows']:
        shape = [
            f'{k} {row[k]}' for k in ('width', 'zeros', 'rows') if k in row
        ]
        dense, packed = row['median_seconds'].values()
        text.append(
            f'{" ".join([row["model"], *shape])}: {row["packed_layers"]} '
            f'packed, {dense * 1e3:.2f} -> {packed * 1e3:.2f} ms '
            f'of CPU ({row["speed"]:.2f} x)'
            + ('' if row['same_bits'] else ', other bits')
        )
    return text
