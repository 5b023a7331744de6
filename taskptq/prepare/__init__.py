"""Layer 2: from a float model to one with quantizers in place."""

from __future__ import annotations

from taskptq.prepare.blocks import Unit, split_blocks
from taskptq.prepare.decisions import Decisions
from taskptq.prepare.fuse import fuse_batchnorm
from taskptq.prepare.preparation import prepare
from taskptq.prepare.qconfig import QConfig
from taskptq.prepare.report import SwapReport, SwapRow
from taskptq.prepare.swap import check_swap, swap

__all__ = [
    'Decisions',
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
