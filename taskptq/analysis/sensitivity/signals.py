"""Cheap signs of how well a grid fits a tensor and the layer that reads it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from taskptq.modules.conv import QuantConvTranspose2d

__all__ = ['Signals', 'reading', 'signals_of']

# Stands for no noise at all, in dB.
NOISELESS = 200.0


@dataclass(frozen=True, kw_only=True)
class Signals:
    """Signals of one tensor.

    Args:
        sqnr_db: Power of the values over that of their rounding errors, in
            dB.
        peak_to_std: Largest distance from the mean over the standard
            deviation, of all values.
        codes_used: Share of the grid's codes that occur, [0, 1].
        effective_bits: Effective number of bits of what the reader computes
            from the tensor, see :func:`signals_of`.
    """

    sqnr_db: float
    peak_to_std: float
    codes_used: float
    effective_bits: float


def reading(layer: nn.Module) -> Tensor | None:
    """Return how strongly each output channel of a layer reads each input.

    Args:
        layer: Layer with a weight (C_out, C_in / G, ...).

    Returns:
        Squared weights, summed over the kernel, (G, C_out / G, C_in / G);
        None for other layers.
    """
    weight = getattr(layer, 'weight', None)
    if (
        not isinstance(weight, Tensor)
        or weight.dim() < 2
        or isinstance(layer, QuantConvTranspose2d)
    ):
        return None
    squares = weight.detach().double().square().flatten(1)
    by_channel = squares.unflatten(1, (weight.shape[1], -1)).sum(dim=2)
    groups = int(getattr(layer, 'groups', 1))
    read: Tensor = by_channel.unflatten(0, (groups, -1))
    return read


def signals_of(
    sums: Tensor,
    *,
    count: int,
    ends: tuple[float, float],
    codes_used: float,
    reader: Tensor | None = None,
    by_channel: bool = False,
) -> Signals:
    """Return the signals of a tensor from its sums.

    The reader's output channel o has, taking input channels as uncorrelated,
    the signal ``sum_c W_oc^2 x_c^2`` and the noise ``sum_c W_oc^2 noise_c``.
    The effective number of bits is ``(SQNR - 1.76) / 6.02`` of the mean over
    its output channels of that ratio in dB (IEEE 1241-2010, ENOB). So small
    channels beside large ones count where a layer reads them alone, as a
    depthwise convolution does, and not where it adds them up.

    Args:
        sums: Values, squares and squared errors of each channel, (3, C).
        count: Values in all.
        ends: Lowest and highest value.
        codes_used: Share of the codes that occur.
        reader: See :func:`reading`; None adds all channels up.
        by_channel: Each channel is read alone, as those of weights are.
    """
    num_channels = sums.shape[1]
    power, noise = sums[1], sums[2]  # times the count of a channel
    middle = float(sums[0].sum()) / count
    variance = max(float(power.sum()) / count - middle**2, 0.0)
    peak = max(ends[1] - middle, middle - ends[0])
    if by_channel:
        reader = torch.ones(num_channels, 1, 1)
    if reader is None or reader.shape[0] * reader.shape[2] != num_channels:
        reader = torch.ones(1, 1, num_channels)
    ratio = _decibel(_read(reader, power), _read(reader, noise))
    return Signals(
        sqnr_db=_decibel(power.sum()[None], noise.sum()[None]),
        peak_to_std=peak / math.sqrt(variance) if variance > 0 else 0.0,
        codes_used=codes_used,
        effective_bits=max(0.0, (ratio - 1.76) / 6.02),
    )


def _read(reader: Tensor, values: Tensor) -> Tensor:
    """Sum values per channel, (C,), as the output channels do, (O,)."""
    grouped = values.reshape(reader.shape[0], -1, 1)
    return (reader.to(values) @ grouped).flatten()


def _decibel(signal: Tensor, noise: Tensor) -> float:
    """Return the mean ratio in dB over channels that have a signal."""
    alive = signal > 1e-12 * signal.max()
    if not alive.any():
        return NOISELESS
    signal, noise = signal[alive].double(), noise[alive].double()
    noise = torch.maximum(noise, signal * 10 ** (-NOISELESS / 10))
    return float((10 * (signal / noise).log10()).mean())
