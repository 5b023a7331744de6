"""How far rounding alone moves the outputs of a quantized network.

Float sums differ in their last places from one kernel to the next. Where that
carries a value over the middle between two codes, a whole step follows, and
more of them behind it. No file can be nearer to its simulation than two runs
of the simulation are to each other.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from taskptq.export.onnx.graph import Array
from taskptq.export.onnx.runtime import Feeds, session

__all__ = ['last_place_floor', 'sqnr']

DRAWS = 3
# A place is one to two units of roundoff. Float convolutions of ONNX Runtime
# with 64 to 2304 terms were measured to be 2 to 4 units off, root mean square
# over that of the output.
PLACES = 2


def last_place_floor(path: str | Path, feeds: Feeds) -> list[float]:
    """Measure the noise floor of a file, as signal to noise ratios.

    The scale of each weight's channel moves up or down by two places of
    float32, so that its outputs move by as much as rounding in a sum of
    products does. One such run may happen to meet no tie, so that the lowest
    ratio of several is taken.

    Args:
        path: The file.
        feeds: Its inputs.

    Returns:
        For each output the ratio in dB; infinite where nothing changes.
    """
    model = onnx.load(str(path))
    exact = _run(model, feeds)
    floors = [math.inf] * len(exact)
    for seed in range(DRAWS):
        moved = onnx.ModelProto()
        moved.CopyFrom(model)
        _move_scales(moved, seed=seed)
        found = _run(moved, feeds)
        floors = [
            min(floor, sqnr(a, b))
            for floor, a, b in zip(floors, exact, found, strict=True)
        ]
    return floors


def _run(model: onnx.ModelProto, feeds: Feeds) -> list[Array]:
    running = session(model.SerializeToString(), optimize=False)
    outputs: list[Array] = running.run(None, dict(feeds))
    return outputs


def _move_scales(model: onnx.ModelProto, *, seed: int) -> None:
    """Move the scales of weights, but not those of activations.

    Both ends of an activation's grid are one scale: moving it moves ties
    that no kernel computes.
    """
    nodes = model.graph.node
    rounded = {n.output[0] for n in nodes if n.op_type == 'QuantizeLinear'}
    names = {
        node.input[1]
        for node in nodes
        if node.op_type == 'DequantizeLinear' and node.input[0] not in rounded
    }
    shared = {n.input[1] for n in nodes if n.op_type == 'QuantizeLinear'}
    draw = np.random.default_rng(seed)
    for tensor in model.graph.initializer:
        if tensor.name not in names - shared:
            continue
        scale = numpy_helper.to_array(tensor)
        up = draw.integers(0, 2, scale.shape).astype(bool)
        ends = np.where(up, np.inf, 0).astype(scale.dtype)
        for _ in range(PLACES):
            scale = np.nextafter(scale, ends)
        tensor.CopyFrom(numpy_helper.from_array(scale, tensor.name))


def sqnr(reference: Array, found: Array) -> float:
    """Return the signal to noise ratio in dB; infinite if equal."""
    signal = float(np.square(reference, dtype=np.float64).sum())
    noise = np.subtract(reference, found, dtype=np.float64)
    power = float(np.square(noise).sum())
    if power == 0:
        return math.inf
    if not math.isfinite(power):
        return -math.inf
    return 10 * math.log10(max(signal, 1e-30) / power)
