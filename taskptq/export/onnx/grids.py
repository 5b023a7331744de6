"""Grids of tensors that have none, or more than one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from taskptq.core import (
    AffineQuantizer,
    MinMaxObserver,
    MSEObserver,
    QuantizerConfig,
    QuantSpec,
)
from taskptq.core.functional import affine_to_range
from taskptq.export.onnx.emission import Grid, grid_of
from taskptq.prepare.common_zero import common_zero_point
from taskptq.prepare.grid_plan import SharedGrid

# Below this SiLU and its kin are flat: the range of their input ends here.
GATE_LOW = -8.0
# Images, channels, height and width.
MAP_AXES = 4


def share_zero_points(grids: dict[str, Grid]) -> list[str]:
    """Give all channels of an activation one zero point.

    Returns:
        Names of the grids that changed.
    """
    changed = []
    for name, grid in grids.items():
        point = grid.zero_point
        if grid.codes is not None or bool((point == point[0]).all()):
            continue
        low, high = affine_to_range(
            grid.scale,
            point,
            quant_min=grid.quant_min,
            quant_max=grid.quant_max,
        )
        scale, point = common_zero_point(
            low, high, quant_min=grid.quant_min, quant_max=grid.quant_max
        )
        grids[name] = replace(grid, scale=scale, zero_point=point)
        changed.append(name)
    return changed


def choose_grid(
    candidates: Sequence[Grid],
    samples: Sequence[Tensor],
    *,
    name: str,
    shared: SharedGrid,
    whole: bool = False,
) -> Grid:
    """Return the grid of a tensor that several read.

    Args:
        candidates: Grids of the quantizers that read it.
        samples: Its values.
        name: Name of a new grid.
        shared: Who reads it.
        whole: Whether it is an output, whose rare peaks are the detections:
            a new grid then covers all values.
    """
    usable = [g for g in candidates if g.ch_axis is None]
    if not usable:
        low = GATE_LOW if shared.gated else None
        # Axis 1 of a stack of maps counts images, not channels.
        maps = all(x.ndim <= MAP_AXES for x in samples)
        return search_grid(
            [x if low is None else x.clamp(min=low) for x in samples],
            name=name,
            per_channel=shared.free and maps,
            whole=whole,
        )
    if len(usable) == 1:
        return usable[0]
    errors = [sum(squared_error(g, x) for x in samples) for g in usable]
    return usable[int(np.argmin(errors))]


def search_grid(
    samples: Sequence[Tensor],
    *,
    name: str,
    per_channel: bool = False,
    whole: bool = False,
) -> Grid:
    """Return the 8-bit grid of least squared error.

    Args:
        samples: Values, (B, C, ...).
        name: Name of the grid.
        per_channel: Give each channel a scale, for its whole range.
        whole: Cover all values instead.
    """
    config = QuantizerConfig(
        spec=QuantSpec(num_bits=8, symmetric=False),
        per_channel=per_channel,
        observer=MinMaxObserver if whole or per_channel else MSEObserver,
    )
    channels = samples[0].shape[1] if per_channel else None
    quantizer = config.build(num_channels=channels)
    assert isinstance(quantizer, AffineQuantizer)
    for x in samples:
        assert quantizer.observer is not None
        quantizer.observer.observe(x)
    quantizer.calibrate()
    return grid_of(quantizer, name=name)


def squared_error(grid: Grid, x: Tensor) -> float:
    """Return the summed squared error of a grid per tensor."""
    codes = torch.round(x / grid.scale) + grid.zero_point
    codes = codes.clamp(grid.quant_min, grid.quant_max)
    x_hat = (codes - grid.zero_point) * grid.scale
    return float((x_hat - x).square().sum())
