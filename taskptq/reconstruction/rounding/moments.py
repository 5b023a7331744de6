"""Joint moments of a layer's inputs in the quantized and the float model."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.calibration.calibrate import calibration_mode
from taskptq.core import float_only, quantizing
from taskptq.core.distributed import gathered
from taskptq.modules.base import QuantModule
from taskptq.prepare.blocks import Unit
from taskptq.reconstruction.capture.unit_data import UnitData
from taskptq.reconstruction.rounding.hessian import HessianAccumulator
from taskptq.reconstruction.rounding.layer_inputs import listening, matmul_of

# Positions of a feature map that count per image: neighbours say much the
# same, and a calibration set has many images.
MAX_POSITIONS = 1024
# Variance below this share of the second moment is that of sums in float32.
CONSTANT = 1e-6


class _StopError(Exception):
    """The layer has received all its inputs: skip the rest of its unit."""


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Averages over inputs x of the quantized and y of the float model.

    Args:
        hessian: E[x x^T], (groups, K, K); the covariance if centred.
        cross: E[y x^T] likewise.
        mean: E[x], (groups, K).
        float_mean: E[y] likewise.
    """

    hessian: Tensor
    cross: Tensor
    mean: Tensor
    float_mean: Tensor


class PairedMoments:
    """Sum products of two streams of inputs of one layer.

    Args:
        layer: See :class:`HessianAccumulator`.
    """

    def __init__(self, layer: nn.Module | None) -> None:
        self._unfold = HessianAccumulator(layer, max_positions=MAX_POSITIONS)
        # Weights belong to positions in one piece.
        self._whole = HessianAccumulator(
            layer, max_positions=MAX_POSITIONS, max_elements=1 << 62
        )
        self.count = 0.0
        self.sums: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(
        self, x: Tensor, float_x: Tensor, *, weights: Tensor | None = None
    ) -> None:
        """Add one call's inputs, of equal shapes.

        Args:
            x: Inputs of the quantized model.
            float_x: Those of the float model.
            weights: Weight of each position of the layer's output, shaped
                like it without channels; None is 1.
        """
        unfold = self._unfold if weights is None else self._whole
        pieces = zip(
            unfold.columns(x.detach().float()),
            unfold.columns(float_x.detach().float()),
            strict=True,
        )
        for quant, exact in pieces:
            if weights is None:
                weighted, self.count = quant, self.count + quant.shape[2]
            else:
                thinned = unfold.thin(weights).to(quant)
                if thinned.numel() != quant.shape[2]:  # another shape now
                    thinned = quant.new_ones(quant.shape[2])
                weighted = quant * thinned
                exact_sum = exact @ thinned
                self.count += float(thinned.sum())
            transposed = weighted.transpose(1, 2)
            self._sum('hessian', quant @ transposed)
            self._sum('cross', exact @ transposed)
            self._sum('mean', weighted.sum(dim=2, dtype=torch.float64))
            if weights is None:
                exact_sum = exact.sum(dim=2, dtype=torch.float64)
            self._sum('float_mean', exact_sum)

    def _sum(self, name: str, value: Tensor) -> None:
        held = self.sums.get(name)
        value = value.to(torch.float64)
        self.sums[name] = value if held is None else held + value

    def moments(self, *, centred: bool) -> Moments:
        """Return the averages.

        Args:
            centred: Subtract the means, as a bias takes these over.
        """
        found = {name: total / self.count for name, total in self.sums.items()}
        if centred:
            mean, float_mean = found['mean'], found['float_mean']
            second = found['hessian'].diagonal(dim1=1, dim2=2).clone()
            found['hessian'] -= mean[:, :, None] * mean[:, None]
            found['cross'] -= float_mean[:, :, None] * mean[:, None]
            left = found['hessian'].diagonal(dim1=1, dim2=2)
            # An input that never moves leaves rounding errors of either
            # sign, of which no damping makes a second moment.
            constant = left <= CONSTANT * second
            found['hessian'] *= ~(constant[:, :, None] | constant[:, None])
            found['cross'] *= ~constant[:, None]
        return Moments(**found)


@torch.no_grad()
def collect(
    layer: QuantModule,
    unit: Unit,
    data: UnitData,
    *,
    weights: Callable[[int, int], Tensor | None] | None = None,
) -> dict[str, PairedMoments]:
    """Run a unit in both models and sum what one of its layers receives.

    Where the two disagree on the calls or shapes, the inputs of the
    quantized model stand for both.

    Args:
        layer: The layer.
        unit: Its unit.
        data: Inputs of the unit.
        weights: Maps the numbers of a batch and of the layer's call in it to
            weights of the output's positions.

    Returns:
        Moments by operand, over all ranks; none if the layer never ran.
    """
    found: dict[str, PairedMoments] = {}
    inputs = _Inputs(layer, unit, data)
    numbers: Counter[tuple[str, int]] = Counter()
    with calibration_mode(unit.module):
        for call, batch in data.calls():
            exact: dict[str, deque[Tensor]] = defaultdict(deque)
            for key, x in inputs.of('float', call, batch):
                exact[key].append(x)
            for key, x in inputs.of('quant', call, batch):
                partner = exact[key].popleft() if exact[key] else x
                if key not in found:
                    found[key] = PairedMoments(matmul_of(layer))
                number = numbers[key, batch]
                numbers[key, batch] += 1
                found[key].add(
                    x,
                    partner if partner.shape == x.shape else x,
                    weights=weights and weights(batch, number),
                )
    return _over_ranks(found)


class _Inputs:
    """Runs a unit as far as one of its layers needs it."""

    def __init__(self, layer: QuantModule, unit: Unit, data: UnitData) -> None:
        self.layer = layer
        self.module = unit.module
        self.data = data
        self.most = 0  # inputs of the layer in one call of the unit

    def of(
        self, stream: str, call: int, batch: int
    ) -> list[tuple[str, Tensor]]:
        """Return (operand, input) pairs of one call of the unit."""
        found: list[tuple[str, Tensor]] = []

        def receive(key: str, x: Tensor) -> None:
            found.append((key, x))
            if len(found) == self.most:
                raise _StopError

        mode = float_only if stream == 'float' else quantizing
        with mode(self.module), listening(self.layer, receive):
            try:
                self.data.run(stream, call, batch)
            except _StopError:
                return found
        # More than ever before: only then the unit ran to its end.
        self.most = max(self.most, len(found))
        return found


def _over_ranks(found: dict[str, PairedMoments]) -> dict[str, PairedMoments]:
    """Add up what the ranks on which the layer ran have seen."""
    own: dict[str, Any] = {k: (v.sums, v.count) for k, v in found.items()}
    ranks = gathered(own)
    if len(ranks) == 1:
        return found
    total: dict[str, PairedMoments] = {}
    for key in sorted({key for rank in ranks for key in rank}):
        total[key] = PairedMoments(None)
        for sums, count in (rank[key] for rank in ranks if key in rank):
            total[key].count += count
            for name, value in sums.items():
                total[key]._sum(name, value)
    return total
