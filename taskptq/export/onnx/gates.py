"""Choose by measurement which gates, such as SiLU, run in integers.

An integer gate is fast, but needs one scale for all channels of its input
and of its output; a float one leaves each channel a scale of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from taskptq.export.onnx.emission import Grid
from taskptq.export.onnx.grids import GATE_LOW, search_grid

# Points of the function that a gate is, and values that it is measured on.
POINTS = 1024
MOST_VALUES = 1 << 18


def choose_gates(
    gated: Mapping[str, str],
    samples: Mapping[str, Sequence[Tensor]],
    *,
    limit: float,
) -> dict[str, float]:
    """Return the gates whose integer form is precise enough.

    Args:
        gated: Input -> output of each gate.
        samples: Values of these tensors, (B, C, ...).
        limit: Least signal to noise ratio of the output, in dB.

    Returns:
        Input -> what it reaches, in dB.
    """
    reached = {
        x: gate_precision(samples[x], samples[y]) for x, y in gated.items()
    }
    return {x: found for x, found in reached.items() if found >= limit}


def gate_precision(
    inputs: Sequence[Tensor], outputs: Sequence[Tensor]
) -> float:
    """Return the signal to noise ratio of an integer gate, in dB.

    Noise is measured relative to each channel, and averaged: what reads the
    output weighs channels as it likes.

    Args:
        inputs: Values before the gate, (B, C, ...).
        outputs: Values behind it.
    """
    x, y = _rows(inputs), _rows(outputs)
    before = search_grid([x.clamp(min=GATE_LOW)[None]], name='x')
    x_hat = on_grid(before, x)
    y_hat = _as_function(x, y, x_hat)
    after = search_grid([y[None]], name='y')
    noise = (on_grid(after, y_hat) - y).square().mean(dim=1)
    power = y.square().mean(dim=1)
    alive = power > 0
    ratio = float((noise[alive] / power[alive]).mean()) if alive.any() else 0
    return math.inf if ratio == 0 else -10 * math.log10(ratio)


def on_grid(grid: Grid, x: Tensor) -> Tensor:
    """Return values on a grid per tensor."""
    codes = torch.round(x / grid.scale) + grid.zero_point
    codes = codes.clamp(grid.quant_min, grid.quant_max)
    return (codes - grid.zero_point) * grid.scale


def _rows(samples: Sequence[Tensor]) -> Tensor:
    """Return values by channel, (C, N), not too many."""
    rows = torch.cat([x.transpose(0, 1).flatten(1) for x in samples], dim=1)
    step = max(1, rows.numel() // MOST_VALUES)
    return rows[:, ::step]


def _as_function(x: Tensor, y: Tensor, at: Tensor) -> Tensor:
    """Interpolate between samples of a function of one number."""
    flat, order = x.flatten().sort()
    places = torch.linspace(0, len(flat) - 1, min(POINTS, len(flat))).long()
    # The ends of the range are rare, and matter most.
    ends = torch.arange(min(POINTS, len(flat)))
    places = torch.cat([places, ends, len(flat) - 1 - ends]).unique()
    known = flat[places].numpy(), y.flatten()[order[places]].numpy()
    values = np.interp(at.numpy(), *known)
    return torch.from_numpy(values.astype(np.float32))
