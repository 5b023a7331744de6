"""Check that a written file computes what the network computes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from taskptq.core import float_only
from taskptq.core.functional import per_channel
from taskptq.core.quantizers import AffineQuantizer
from taskptq.core.switches import quantizers
from taskptq.export.onnx.emission import Grid
from taskptq.export.onnx.errors import OnnxExportError
from taskptq.export.onnx.graph import Array, Graph
from taskptq.export.onnx.lowering import storage_of
from taskptq.export.onnx.noise_floor import last_place_floor, sqnr
from taskptq.export.onnx.patches import is_merged
from taskptq.export.onnx.runtime import Feeds, inner_session, session
from taskptq.export.onnx.targets import Target
from taskptq.export.runtime import first_line, onnxruntime_errors
from taskptq.modules.base import quant_modules

# The noise of the integers stays 5 dB below that of the quantization.
MARGIN = 5.0
# The file is one more run of the network: two runs that are equally far from
# exact arithmetic differ by twice the noise (3 dB) of either.
FLOOR_MARGIN = 3.0
# Equal up to float32 rounding: no threshold asks for more.
EXACT = 90.0
# What added grids may cost, counted from a level that is good enough.
MOST_LOST = 10.0
ENOUGH = 40.0
# How near to the middle of two codes a value may round either way.
TIE = 1e-3
INTEGER = (
    'QLinearConv',
    'ConvInteger',
    'QLinearMatMul',
    'MatMulInteger',
    'MatMulIntegerToFloat',
    'QGemm',
)
FLOAT = ('Conv', 'FusedConv', 'MatMul', 'FusedMatMul', 'Gemm', 'ConvTranspose')


def verify_file(
    path: str | Path,
    network: nn.Module,
    inputs: tuple[Tensor, ...],
    *,
    feeds: Feeds,
    grids: Mapping[str, Grid],
    target: Target,
) -> dict[str, Any]:
    """Check a file against the network that it was written from.

    Args:
        path: The file.
        network: Frozen network.
        inputs: Example inputs.
        feeds: The same, as the runtime takes them.
        grids: Grids that were written, by name.
        target: Rules of the runtime.

    Returns:
        What was measured, in plain types.

    Raises:
        OnnxExportError: If a check fails; names the layer.
    """
    model = onnx.load(str(path))
    graph = Graph(model)
    checks = {'codes': check_codes(graph, grids, target=target)}
    checks |= check_first_codes(graph, network, inputs, feeds=feeds)
    checks |= check_outputs(
        path,
        network,
        inputs,
        feeds=feeds,
        integers=target.completes,
    )
    return checks | (count_integer(path) if target.completes else {})


def check_codes(
    graph: Graph, grids: Mapping[str, Grid], *, target: Target
) -> str:
    """Compare the integers and grids of a file with the network's.

    Raises:
        OnnxExportError: Naming the first that differs.
    """
    same = moved = 0
    for name, grid in grids.items():
        if grid.codes is None:
            kind, shift = storage_of(grid, target=target)
            found = _stored(graph, name)
            if not found:
                moved += 1
            elif not _same_grid(graph, grid, kind=kind, shift=shift):
                raise OnnxExportError(
                    f'the grid of {name} differs in the file: this is a '
                    'fault of the export, please report it'
                )
            continue
        shift = -(2 ** (grid.num_bits - 1)) - grid.quant_min
        expected = grid.codes.numpy().astype(np.int64) + shift
        whole, parts = _codes(graph, name)
        if whole is not None:
            equal = np.array_equal(whole, expected)
        else:
            moved += 1
            flat = [np.empty(0, np.int64), *(p.reshape(-1) for p in parts)]
            # Parts come in another order, and may be padded with zeros.
            stored, known = np.concatenate(flat), expected.reshape(-1)
            zero = int(grid.zero_point.reshape(-1)[0]) + shift
            equal = np.array_equal(
                np.sort(stored[stored != zero]), np.sort(known[known != zero])
            )
        if not equal:
            raise OnnxExportError(
                f'the codes of {name} differ in the file: this is a fault '
                'of the export, please report it'
            )
        same += 1
    return f'{same} weights equal bit by bit, {moved} parts moved by a pass'


def _stored(graph: Graph, name: str) -> bool:
    return f'{name}.scale' in graph.constants


def _same_grid(graph: Graph, grid: Grid, *, kind: type, shift: int) -> bool:
    scale = graph.array(f'{grid.name}.scale')
    point = graph.array(f'{grid.name}.zero_point')
    assert scale is not None
    expected: Array = (grid.zero_point.numpy() + shift).astype(kind)
    return np.array_equal(scale.reshape(-1), grid.scale.numpy()) and (
        point is None or np.array_equal(point.reshape(-1), expected)
    )


def _codes(graph: Graph, name: str) -> tuple[Array | None, list[Array]]:
    """Return the stored codes of a weight: whole, or as moved parts."""
    parts = []
    for key in graph.constants:
        if not key.startswith(f'{name}.codes'):
            continue
        array = graph.array(key)
        assert array is not None
        if key in (f'{name}.codes', f'{name}.codes.int4'):
            return array.astype(np.int64), []
        stem = key.removesuffix('.int4').removesuffix('.padded')
        if stem.endswith('.codes'):
            parts.append(array.astype(np.int64))
    return None, parts


def check_first_codes(
    graph: Graph,
    network: nn.Module,
    inputs: tuple[Tensor, ...],
    *,
    feeds: Feeds,
) -> dict[str, Any]:
    """Compare the codes of the first quantized tensor, but for ties.

    Raises:
        OnnxExportError: If other codes differ.
    """
    first = next(
        (n for n in graph.nodes if n.op_type == 'QuantizeLinear'), None
    )
    if first is None:
        return {}
    seen: list[tuple[str, AffineQuantizer, Tensor]] = []
    handles = [
        quantizer.register_forward_pre_hook(
            lambda _, args, name=name, q=quantizer: seen.append(
                (name, q, args[0].detach())
            )
        )
        for name, quantizer in quantizers(network)
        if isinstance(quantizer, AffineQuantizer)
        and quantizer.calibrated
        and not quantizer.frozen
    ]
    try:
        with torch.no_grad():
            network(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        return {}
    name, quantizer, x = seen[0]
    if not first.input[1].startswith(name) or quantizer.spec.ch_axis:
        return {}
    running = inner_session(graph, [first.output[0]])
    (found,) = running.run(None, dict(feeds))
    if is_merged(graph, first):
        # The same channels in another order.
        found, x = np.sort(found, axis=1), x.sort(dim=1).values
    expected = quantizer.quantize(x).cpu().numpy()
    point = graph.array(first.input[2])
    assert point is not None
    shift = int(point.flat[0]) - int(quantizer.zero_point)
    # Below 8 bits a Clip follows.
    codes = (found.astype(np.int64) - shift).clip(
        quantizer.quant_min, quantizer.quant_max
    )
    differ = codes != expected
    steps = (x / quantizer.scale).cpu().numpy()[differ]
    off = np.abs(np.abs(steps - np.floor(steps)) - 0.5)
    if off.size and float(off.max()) > TIE:
        raise OnnxExportError(
            f'{int(differ.sum())} codes of {name} differ in the file: this '
            'is a fault of the export, please report it'
        )
    return {
        'first codes': f'{name}: equal but for {int(differ.sum())} ties of '
        f'{differ.size}'
    }


def check_outputs(
    path: str | Path,
    network: nn.Module,
    inputs: tuple[Tensor, ...],
    *,
    feeds: Feeds,
    integers: bool = True,
) -> dict[str, Any]:
    """Compare the outputs of a file with those of its simulation.

    The noise of the integers has to stay below that of the quantization,
    or below what rounding alone does to the network, within 3 dB. The
    latter is the worst of several runs, with other float kernels and with
    weights moved in their last place (:mod:`.noise_floor`). Other kernels
    alone do not measure it: for some networks they are the same ones.

    Args:
        path: The file.
        network: Frozen network.
        inputs: Example inputs.
        feeds: The same, as the runtime takes them.
        integers: Whether the file is for ONNX Runtime: its integer kernels
            are then compared with the same file computed as it stands, with
            all grids that were added. Else that is compared with the
            network.

    Returns:
        What was measured of each output.

    Raises:
        OnnxExportError: Naming the output.
    """
    fast = session(str(path), integers=integers)
    names = [output.name for output in fast.get_outputs()]
    try:
        found = fast.run(None, dict(feeds))
    except onnxruntime_errors() as error:
        raise OnnxExportError(
            f'ONNX Runtime cannot run the file ({first_line(error)}): '
            "quantize with deploy='onnxruntime' in the recipe"
        ) from error
    simulated = run_network(network, inputs)
    with float_only(network), unrounded(network):
        floats = run_network(network, inputs)
    # The same network by other kernels: what ties make of their rounding.
    with torch.backends.mkldnn.flags(enabled=False), dividing(network):
        other = run_network(network, inputs)
    plain = simulated
    if integers:
        plain = session(str(path), optimize=False).run(None, dict(feeds))
        other = session(str(path), integers=False).run(None, dict(feeds))
    floors = last_place_floor(path, feeds)
    rows = {}
    for i, name in enumerate(names):
        own = sqnr(floats[i], plain[i])
        floor = min(floors[i], sqnr(plain[i], other[i]))
        needed = min(own + MARGIN, floor - FLOOR_MARGIN, EXACT)
        reached = sqnr(plain[i], found[i])
        if not reached >= needed:
            raise OnnxExportError(
                f'output {name!r} reaches {reached:.1f} dB against its '
                f'simulation, and {needed:.1f} dB are needed: this is a '
                'fault of the export or of the runtime, please report it'
            )
        before = sqnr(floats[i], simulated[i])
        after = sqnr(floats[i], found[i])
        if after < min(before, ENOUGH) - MOST_LOST:
            raise OnnxExportError(
                f'output {name!r} falls from {before:.1f} to {after:.1f} dB '
                'with the grids that the runtime needs: quantize with '
                "deploy='onnxruntime' in the recipe, give more images to "
                'calibrate them on, or keep the layer that computes it float '
                '(keep_float)'
            )
        rows[name] = {
            'file_to_simulation_db': _rounded(reached),
            'needed_db': _rounded(needed),
            'simulation_to_float_db': _rounded(before),
            'file_to_float_db': _rounded(after),
        }
    return {'outputs': rows}


@contextmanager
def unrounded(network: nn.Module) -> Iterator[None]:
    """Move frozen weights by as much as rounding has moved them.

    The float weights are gone. Rounding errors are uniform within half a
    step, so weights that are off by such errors are as far from the frozen
    ones, and so are their outputs.
    """
    saved: list[tuple[Tensor, Tensor]] = []
    generator = torch.Generator().manual_seed(0)
    seen: set[int] = set()
    for _, module in quant_modules(network):
        for parameter, _ in module.active_slots():
            weight: Tensor = getattr(module, parameter)
            quantizer = module.weight_quantizer_of(parameter)
            if quantizer is None or not quantizer.frozen:
                continue
            if id(weight) in seen:
                continue
            seen.add(id(weight))
            saved.append((weight, weight.data.clone()))
            scale = per_channel(
                quantizer.steps(),
                ndim=weight.dim(),
                ch_axis=quantizer.spec.ch_axis,
            )
            noise = torch.rand(weight.shape, generator=generator) - 0.5
            weight.data += noise.to(weight.device) * scale.to(weight.dtype)
    try:
        yield
    finally:
        for weight, values in saved:
            weight.data = values


@contextmanager
def dividing(network: nn.Module) -> Iterator[None]:
    """Round x / scale as runtimes do, where torch rounds x * (1 / scale)."""
    changed = [
        quantizer
        for _, quantizer in quantizers(network)
        if isinstance(quantizer, AffineQuantizer) and quantizer.calibrated
    ]

    def divided(quantizer: AffineQuantizer) -> Callable[[Tensor], Tensor]:
        return lambda x: quantizer.dequantize(quantizer.quantize(x))

    try:
        for quantizer in changed:
            quantizer.__dict__['fake_quantize'] = divided(quantizer)
        yield
    finally:
        for quantizer in changed:
            del quantizer.__dict__['fake_quantize']


def run_network(network: nn.Module, inputs: tuple[Tensor, ...]) -> list[Array]:
    """Return the outputs of a network."""
    with torch.no_grad():
        outputs = network(*inputs)
    if isinstance(outputs, Tensor):
        outputs = (outputs,)
    return [output.cpu().numpy() for output in outputs]


def count_integer(path: str | Path) -> dict[str, Any]:
    """Count the convolutions and products that run in integers.

    The answer is that of ONNX Runtime's own optimized graph.
    """
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / 'optimized.onnx'
        session(str(path), save=saved)
        nodes = onnx.load(str(saved)).graph.node
        integer = [n.name for n in nodes if n.op_type in INTEGER]
        floats = [n.name for n in nodes if n.op_type in FLOAT]
    return {'integer_layers': len(integer), 'float_layers': floats}


def _rounded(value: float) -> float:
    return round(value, 1)
