"""Undo steps that made a unit, or the whole network, worse.

The loss of the whole set can rise although every step follows its gradient:
where many activations share a value (an even image background, in the first
layers), they all change their code together when a scale moves by a few parts
in a thousand, and a minibatch's gradient doesn't show it. A unit whose
roundings were solved first can lose as well: minibatches are noisier than the
moments of the whole set.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from taskptq.core.switches import quantizers
from taskptq.prepare.blocks import Unit
from taskptq.reconstruction.rounding.learned import UnitResult

logger = logging.getLogger('taskptq')


class Snapshot:
    """Codes, biases and ranges of a unit, to restore later.

    Args:
        unit: The unit; its counterparts are calibrated.
    """

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self.codes: dict[tuple[str, str], Tensor] = {}
        for name, module in unit.layers():
            for parameter, _ in module.active_slots():
                if module.weight_values_of(parameter) is not None:
                    codes = module.codes(parameter)
                    self.codes[name, parameter] = codes
        self.biases = {
            (name, parameter): bias
            for name, module in unit.layers()
            for parameter, bias in module.corrected_biases.items()
        }
        self.ranges = {
            name: {
                key: value.detach().clone()
                for key, value in quantizer.state_dict().items()
            }
            for name, quantizer in quantizers(unit.module)
        }

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the codes, biases and ranges."""
        layers = dict(self.unit.layers())
        # First, as codes become values by the ranges.
        for name, quantizer in quantizers(self.unit.module):
            quantizer.load_state_dict(self.ranges[name])
        for (name, parameter), codes in self.codes.items():
            layers[name].set_codes(parameter, codes)
        for layer in layers.values():
            layer.forget_biases()
        for (name, parameter), bias in self.biases.items():
            layers[name].set_bias(parameter, bias)


def keep_better(
    unit: Unit,
    result: UnitResult,
    *,
    before: Snapshot,
    measure: Callable[[], float],
) -> None:
    """Restore the snapshot unless the loss of the calibration set fell.

    Both losses are measured after training, so that a loss with adaptive
    weights uses the same ones for both.

    Args:
        unit: The trained unit.
        result: Result of the training; receives both losses and the outcome.
        before: Snapshot from before the training.
        measure: Returns the current loss of the set.
    """
    after = Snapshot(unit)
    result.set_loss_end = measure()
    before.restore()
    result.set_loss_start = measure()
    if result.set_loss_end < result.set_loss_start:
        after.restore()
        return
    result.taken_back, result.flipped = True, 0.0
    if unit.name:
        logger.info(
            '%s keeps its solved roundings: its loss went from %.4g to %.4g '
            'in %d steps',
            unit.name,
            result.set_loss_start,
            result.set_loss_end,
            result.steps,
        )
        return
    logger.warning(
        'the loss over the calibration set went from %.4g to %.4g in %d '
        'steps on the network, which are undone: lower weight_lr or '
        'scale_lr in reconstruction.network, set learn_scales=False there, '
        'or name fewer layers in network_train',
        result.set_loss_start,
        result.set_loss_end,
        result.steps,
    )
