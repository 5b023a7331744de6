"""Speed of exported files: processor and wall time, and what stays float."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taskptq.export.openvino_session import open_session as open_file
from taskptq.export.runtime import (
    OnnxFile,
    Port,
    Session,
    read_onnx,
    runtime_package,
)

__all__ = [
    'FloatLayer',
    'Timing',
    'example_inputs',
    'float_layers',
    'integer_layers',
    'measure',
    'time_shares',
]

# Operators that compute products, by the type of their operands.
FLOAT_OPS = frozenset(
    {
        'Conv',
        'ConvTranspose',
        'FusedConv',
        'FusedGemm',
        'FusedMatMul',
        'Gemm',
        'MatMul',
        'NhwcFusedConv',
    }
)
INTEGER_OPS = frozenset(
    {
        'ConvInteger',
        'DynamicQuantizeMatMul',
        'MatMulInteger',
        'MatMulIntegerToFloat',
        'MatMulNBits',
        'QAttention',
        'QGemm',
        'QLinearConv',
        'QLinearMatMul',
    }
)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Time of one file.

    Args:
        path: The file.
        cpu: Processor time of the process in each run, seconds.
        wall: Wall time of each run, seconds.
    """

    path: str
    cpu: list[float]
    wall: list[float]

    def to_dict(self) -> dict[str, Any]:
        """Return medians in milliseconds, and the number of runs."""
        return {
            'file': self.path,
            'runs': len(self.cpu),
            'cpu_ms': round(1000 * statistics.median(self.cpu), 3),
            'wall_ms': round(1000 * statistics.median(self.wall), 3),
        }


def example_inputs(
    ports: Sequence[Port],
    *,
    size: tuple[int, int] | None = None,
    batch: int = 1,
) -> tuple[Tensor, ...]:
    """Return noise for the inputs of a file.

    Args:
        ports: Its inputs.
        size: Height and width of the images, where they are free.
        batch: For the first dimension, where it is free.

    Raises:
        ValueError: If a size is free and not given.
    """
    generator = torch.Generator().manual_seed(0)
    found = []
    for port in ports:
        shape = list(port.shape)
        if shape and shape[0] is None:
            shape[0] = batch
        if size is not None and len(shape) >= 3:
            shape[-2:] = [
                known or given
                for known, given in zip(shape[-2:], size, strict=True)
            ]
        if None in shape:
            raise ValueError(
                f'the sizes of the input {port.name} are free: give --size '
                'HEIGHT WIDTH'
            )
        noise = torch.randn(shape, generator=generator)
        found.append(noise.to(port.dtype))
    return tuple(found)


def measure(
    runs: Mapping[str, Callable[[], Any]], *, warmup: int, repeats: int
) -> list[Timing]:
    """Run files in turn, so that a busy machine slows all of them alike.

    Args:
        runs: What to run, by file.
        warmup: Runs of each that are not counted.
        repeats: Runs of each that are.
    """
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    wall: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(warmup + repeats):
        for name, run in runs.items():
            start = time.process_time(), time.perf_counter()
            run()
            end = time.process_time(), time.perf_counter()
            if number >= warmup:
                cpu[name].append(end[0] - start[0])
                wall[name].append(end[1] - start[1])
    return [Timing(path=name, cpu=cpu[name], wall=wall[name]) for name in runs]


@dataclass(frozen=True, kw_only=True)
class FloatLayer:
    """A product that the runtime computes in float.

    Args:
        name: Node of the optimized graph.
        kind: Its operator.
        why: Why it is no integer product.
    """

    name: str
    kind: str
    why: str


def optimized_graph(file: OnnxFile, *, threads: int) -> Any:
    """Return the graph that ONNX Runtime makes of a file."""
    runtime = runtime_package('onnxruntime')
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'optimized.onnx'
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        options.optimized_model_filepath = str(path)
        runtime.InferenceSession(
            file.content, options, providers=['CPUExecutionProvider']
        )
        return runtime_package('onnx').load(str(path)).graph


def integer_layers(graph: Any) -> int:
    """Count the products of an optimized graph that run in integers."""
    return sum(node.op_type in INTEGER_OPS for node in graph.node)


def float_layers(graph: Any, original: Any) -> list[FloatLayer]:
    """Return the products that stay float, and why.

    Args:
        graph: Optimized graph.
        original: Graph of the file, in which the reason is looked for.
    """
    makers = {out: node for node in original.node for out in node.output}
    readers: dict[str, list[Any]] = {}
    for node in original.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    names = {node.name: node for node in original.node}
    found = []
    for node in graph.node:
        if node.op_type not in FLOAT_OPS:
            continue
        source = source_of(node, names=names, makers=makers)
        why = 'the runtime made it'
        if source is not None:
            why = reason(source, makers=makers, readers=readers)
        found.append(FloatLayer(name=node.name, kind=node.op_type, why=why))
    return found


def source_of(
    node: Any, *, names: Mapping[str, Any], makers: Mapping[str, Any]
) -> Any:
    """Return the file's product behind a node of the optimized graph.

    Fused nodes are named by what they end in, such as an activation.

    Args:
        node: Node of the optimized graph.
        names: Nodes of the file, by name.
        makers: Nodes of the file, by what they compute.
    """
    keys = [node.name, *node.output]
    keys += [key.removesuffix('_nchwc') for key in keys]
    for key in keys:
        source = names.get(key) or makers.get(key)
        while source is not None:
            if source.op_type in FLOAT_OPS:
                return source
            # Back through what was fused to it.
            source = makers.get(source.input[0]) if source.input else None
    return None


def reason(
    node: Any,
    *,
    makers: Mapping[str, Any],
    readers: Mapping[str, Sequence[Any]],
) -> str:
    """Say why a product of the file is not computed in integers."""
    on_grid = [
        name in makers and makers[name].op_type == 'DequantizeLinear'
        for name in node.input[:2]
    ]
    if not any(on_grid):
        return 'float in the model'
    if not on_grid[1]:
        return 'its weights (or second operand) have no grid'
    if not on_grid[0]:
        return 'its input has no grid'
    kinds = {reader.op_type for reader in readers.get(node.output[0], ())}
    if kinds != {'QuantizeLinear'}:
        return 'its output has no grid'
    return 'the runtime has no integer form for its grids'


def time_shares(
    file: OnnxFile, inputs: Sequence[Tensor], *, threads: int, runs: int = 5
) -> dict[str, float]:
    """Return the share of time of each operator, largest first.

    Args:
        file: The file.
        inputs: Its inputs.
        threads: Threads of the runtime.
        runs: Profiled runs, after one that is not counted.
    """
    runtime = runtime_package('onnxruntime')
    with tempfile.TemporaryDirectory() as folder:
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / 'profile')
        session = runtime.InferenceSession(
            file.content, options, providers=['CPUExecutionProvider']
        )
        names = [node.name for node in session.get_inputs()]
        arrays = [tensor.numpy() for tensor in inputs]
        for _ in range(runs + 1):
            session.run(None, dict(zip(names, arrays, strict=True)))
        events = json.loads(Path(session.end_profiling()).read_text('utf-8'))
    spent: Counter[str] = Counter()
    for event in events:
        if event.get('cat') == 'Node' and event['name'].endswith(
            '_kernel_time'
        ):
            spent[event['args']['op_name']] += event['dur']
    total = sum(spent.values()) or 1
    return {kind: value / total for kind, value in spent.most_common()}


def open_session(
    path: str | Path, *, threads: int, runtime: str | None = None
) -> Session:
    """Open a file, of taskptq or of others."""
    return open_file(read_onnx(path), runtime=runtime, threads=threads)
