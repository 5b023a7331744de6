"""The loss of a unit over the whole calibration set."""

from __future__ import annotations

import torch
from torch import Tensor

from taskptq.calibration.calibrate import calibration_mode
from taskptq.core import quantizing
from taskptq.core.distributed import mean_over_ranks
from taskptq.prepare.blocks import Unit
from taskptq.reconstruction.capture.nesting import flatten, named
from taskptq.reconstruction.capture.provenance import Source
from taskptq.reconstruction.capture.unit_data import UnitData
from taskptq.reconstruction.losses import ReconContext, ReconLoss


@torch.no_grad()
def set_loss(unit: Unit, data: UnitData, loss: ReconLoss) -> float:
    """Return the mean loss of all calls of a quantized unit, without drop.

    Args:
        unit: The unit.
        data: Its inputs, and the float outputs.
        loss: Reconstruction loss.
    """
    losses = []
    with calibration_mode(unit.module), quantizing(unit.module):
        for call, batch in data.calls():
            outputs, _ = flatten(data.run('quant', call, batch))
            targets = _targets(data, call, batch)
            context = ReconContext(
                unit=unit.name,
                step=0,
                num_steps=1,
                image_ids=_images(data, batch, targets),
            )
            losses.append(loss(named(outputs), named(targets), context))
    return float(mean_over_ranks(torch.stack(losses).mean()))


def _targets(data: UnitData, call: int, batch: int) -> list[Tensor]:
    """Return the float outputs of one call."""
    count = data.plan.batches[batch].num_outputs[call]
    places = (Source('out', data.index, call, i) for i in range(count))
    return [
        data.cache.get(('float', place, batch), plain=data.plain)
        for place in places
    ]


def _images(
    data: UnitData, batch: int, targets: list[Tensor]
) -> tuple[int, ...]:
    """Return the numbers of a batch's images, if rows are images."""
    length, first = data.lengths[batch], sum(data.lengths[:batch])
    if any(target.shape[:1] != (length,) for target in targets):
        return ()
    return tuple(range(first, first + length))
