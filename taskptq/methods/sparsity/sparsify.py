"""Choose masks and hand them to the weight quantizers."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor, nn

from taskptq.methods.sparsity.allocations import fixed_masks
from taskptq.methods.sparsity.learned import learn_masks
from taskptq.methods.sparsity.masks import pattern_mask
from taskptq.methods.sparsity.prunable import Prunable, find_prunable
from taskptq.methods.sparsity.report import LayerRow, SparsityReport
from taskptq.prepare.sparsity import SparsityConfig
from taskptq.reconstruction.network import NOT_TRAINABLE

logger = logging.getLogger('taskptq')


def sparsify(
    model: nn.Module,
    config: SparsityConfig,
    *,
    batches: Sequence[Any],
    adapter: Any = None,
    edges: Collection[str] = (),
    seed: int = 0,
) -> SparsityReport:
    """Give each prunable weight of a swapped model its mask.

    Weights keep their values: the masks act when weight quantizers are on,
    so that reconstruction still sees the dense model as its target.

    Args:
        model: Swapped model, not calibrated.
        config: Settings.
        batches: Calibration batches, for learned rates.
        adapter: The model's adapter, for learned rates.
        edges: Qualified names of the first and last layers, which stay
            dense.
        seed: Seed of learned rates.

    Raises:
        ValueError: If no weight is prunable, or is not finite.
    """
    start = time.perf_counter()
    prunable, dense = find_prunable(model, config, edges=edges)
    for one in prunable:
        if not bool(one.weight.isfinite().all()):
            raise ValueError(
                f'{one.name} holds NaN or infinity: check the float checkpoint'
            )
    report = SparsityReport(config=config.to_dict(), dense=dense)
    masks = _masks(model, prunable, config, report, batches, adapter, seed)
    for one, mask in zip(prunable, masks, strict=True):
        if mask is None:
            report.dense[one.name] = (
                f'{one.weight.shape[1 - one.ch_axis]} input channels do not '
                f'divide into {config.pattern}'
            )
            continue
        for quantizer in one.quantizers:
            quantizer.mask = mask
        report.layers.append(LayerRow.of(one, mask))
    if not report.layers:
        raise ValueError(
            f'no layer has input channels that divide into {config.pattern}: '
            "choose another pattern, or 'unstructured'"
        )
    report.seconds = time.perf_counter() - start
    logger.info('%s', report.sentence())
    return report


def _masks(
    model: nn.Module,
    prunable: Sequence[Prunable],
    config: SparsityConfig,
    report: SparsityReport,
    batches: Sequence[Any],
    adapter: Any,
    seed: int,
) -> Sequence[Tensor | None]:
    """Return the mask of each weight; None leaves one dense."""
    if config.kept_of is not None:
        kept, of = config.kept_of
        return [
            pattern_mask(
                one.weight.abs(), kept=kept, of=of, out_axis=one.ch_axis
            )
            for one in prunable
        ]
    assert config.rate is not None
    allocation = config.allocation
    if allocation == 'learned':
        learned = _learned(
            model, prunable, config, report, batches, adapter, seed
        )
        if learned is not None:
            return learned
        allocation = 'l2'
    weights = [one.weight for one in prunable]
    return fixed_masks(weights, rate=config.rate, allocation=allocation)


def _learned(
    model: nn.Module,
    prunable: Sequence[Prunable],
    config: SparsityConfig,
    report: SparsityReport,
    batches: Sequence[Any],
    adapter: Any,
    seed: int,
) -> list[Tensor] | None:
    """Return masks of learned rates; None, and a warning, if impossible."""
    try:
        learned = learn_masks(
            model, prunable, batches, config, adapter=adapter, seed=seed
        )
    except NOT_TRAINABLE as error:
        report.fallback = ' '.join(str(error).split())
        logger.warning(
            "sparsity: rates cannot be learned (%s), so allocation='l2' "
            'shares them out',
            report.fallback,
        )
        return None
    report.learned = {
        'loss_start': learned.loss_start,
        'loss_end': learned.loss_end,
        'thresholds': learned.thresholds,
    }
    return learned.masks
