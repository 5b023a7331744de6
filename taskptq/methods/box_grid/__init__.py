"""Boxes as distributions over a grid: C-BBL, UGS and distribution losses."""

from taskptq.methods.box_grid.box_grid import (
    BoxGrid,
    nonuniform_grid,
    one_sided_grid,
    uniform_grid,
)
from taskptq.methods.box_grid.distribution_loss import ForegroundKLLoss
from taskptq.methods.box_grid.wasserstein import wasserstein_similarity

__all__ = [
    'BoxGrid',
    'ForegroundKLLoss',
    'nonuniform_grid',
    'one_sided_grid',
    'uniform_grid',
    'wasserstein_similarity',
]
