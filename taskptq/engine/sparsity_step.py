"""The step that gives a prepared model its masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from taskptq.engine.recipe import Recipe
from taskptq.methods.sparsity import sparsify
from taskptq.prepare import SwapReport
from taskptq.prepare.swap import EDGE_LAYER

__all__ = ['make_sparse']


def make_sparse(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    recipe: Recipe,
    swapped: SwapReport,
    adapter: Any,
) -> dict[str, Any]:
    """Choose masks as the recipe's ``qconfig.sparsity`` says, in place.

    Args:
        model: Swapped model, not calibrated.
        batches: Calibration batches of this rank.
        recipe: The recipe.
        swapped: Report of the swap, which knows first and last layers.
        adapter: The model's adapter.

    Returns:
        The report under ``sparsity``, plain types; empty without sparsity.
    """
    config = recipe.qconfig.sparsity
    if config is None:
        return {}
    edges = {row.name for row in swapped.rows if row.reason == EDGE_LAYER}
    report = sparsify(
        model,
        config,
        batches=batches,
        adapter=adapter,
        edges=edges,
        seed=recipe.seed,
    )
    return {'sparsity': report.to_dict()}
