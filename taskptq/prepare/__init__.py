"""Layer 2: from a float model to one with quantizers in place."""
from __future__ import annotations

from torch import nn

from taskptq.modules import leave_fast_paths, share_inputs
from taskptq.prepare.blocks import Unit, split_blocks
from taskptq.prepare.fuse import fuse_batchnorm
from taskptq.prepare.qconfig import QConfig
from taskptq.prepare.report import SwapReport, SwapRow
from taskptq.prepare.swap import check_swap, swap

__all__ = [
    'QConfig',
    'SwapReport',
    'SwapRow',
    'Unit',
    'check_swap',
    'fuse_batchnorm',
    'prepare',
    'split_blocks',
    'swap',
]


def prepare(model: nn.Module, qconfig: QConfig) -> SwapReport:
    """Fold BatchNorms, then swap in the counterparts, in place.

    Args:
        model: Float model in eval mode.
        qconfig: Recipe.

    Raises:
        ValueError: If a pattern matches nothing, nothing can be quantized,
            or the model is quantized already; the model is then untouched.
    """
    check_swap(model, qconfig)
    folded = fuse_batchnorm(model)
    report = swap(model, qconfig)
    share_inputs(model)
    leave_fast_paths(model)
    report.folded = folded
    return report
