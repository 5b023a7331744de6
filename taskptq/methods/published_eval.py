"""Evaluate as published code of this field does: to show what it is worth.

The public code of QDrop's followers (PTQ4SAM, Lv et al., CVPR 2024, and
successors) has two faults at evaluation: the random drop stays on in the
quantizers of layer inputs, so that half of their values are float, and only
the first layer of each unit is rounded hard, so that the weights of the
others lie off their integer grids. No integer runtime can compute such a
model. It is made on request only, cannot be frozen or packed, and its score
is for a row beside the correct one.
"""
from __future__ import annotations

from typing import Any

import torch
from torch import nn

from taskptq.core import AdaRoundQuantizer, enable
from taskptq.core.state import is_weight_quantizer, quantizers
from taskptq.modules.base import QuantModule
from taskptq.prepare.blocks import Unit

__all__ = ['SoftRoundings', 'leave_as_published']

DROP_PROB = 0.5


class SoftRoundings:
    """Collects learned roundings while they are soft.

    Give it to ``reconstruct`` as ``on_trained``. The first layer of a unit
    is passed over: that one is rounded hard.
    """

    def __init__(self) -> None:
        self.num_units = 0
        self.found: dict[
            str, tuple[QuantModule, dict[str, AdaRoundQuantizer]]
        ] = {}

    def __call__(self, unit: Unit) -> None:
        """Take in a trained unit."""
        learned = [
            (name, module, module.roundings)
            for name, module in unit.layers()
            if module.roundings
        ]
        self.num_units += bool(learned)
        for name, module, roundings in learned[1:]:
            self.found[name] = module, roundings


def leave_as_published(
    model: nn.Module, soft: SoftRoundings
) -> dict[str, Any]:
    """Bring a reconstructed model into the state that is evaluated there.

    Its outputs are random from now on (torch's global generator), and
    ``freeze`` and ``pack_model`` refuse it.

    Args:
        model: Reconstructed with ``on_trained=soft``, not frozen.
        soft: What was collected.

    Returns:
        Names of the quantizers that drop and of the soft layers, and the
        share of all learned weights of these that lie off the grid by more
        than a hundredth of a step.

    Raises:
        ValueError: If no rounding was learned.
    """
    if not soft.num_units:
        raise ValueError(
            'published evaluation needs learned roundings, and there are '
            "none: give reconstruction=dict(rounding='adaround', "
            'skip_below=0.0)'
        )
    model.eval()
    enable(model)
    dropping = []
    for name, quantizer in quantizers(model):
        if quantizer.calibrated and not is_weight_quantizer(name):
            quantizer.settle()
            if name.rpartition('.')[2].endswith('input_quantizer'):
                quantizer.drop_prob = DROP_PROB
                dropping.append(name)
    for module, roundings in soft.found.values():
        module.attach_roundings(roundings)
    return {
        'drop_prob': DROP_PROB,
        'dropping': dropping,
        'soft_layers': list(soft.found),
        'off_grid': _share_off_grid(soft),
    }


@torch.no_grad()
def _share_off_grid(soft: SoftRoundings) -> float:
    off, total = 0, 0
    for _, roundings in soft.found.values():
        for rounding in roundings.values():
            steps = rounding() / rounding.scale
            off += int(((steps - steps.round()).abs() > 0.01).sum())
            total += steps.numel()
    return off / total if total else 0.0
