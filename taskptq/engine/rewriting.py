"""Run a model on batches, and the rewrites of a recipe on a float model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from taskptq.engine.builder import build_rewrites, to_plain
from taskptq.prepare import QConfig
from taskptq.prepare.subnormal import flush_subnormal

__all__ = ['Forward', 'RewriteStats', 'apply_rewrites', 'run_batch']

Forward = Callable[[nn.Module, Any], Any]


@dataclass(frozen=True, kw_only=True)
class RewriteStats:
    """Calibration data for a ModelRewrite.

    Args:
        batches: Calibration batches of this rank.
        forward: Runs a model on one batch.
        qconfig: Recipe of the quantizers; None if it is unknown.
    """

    batches: Sequence[Any]
    forward: Any
    qconfig: QConfig | None = None


def run_batch(model: nn.Module, batch: Any) -> Any:
    """Run an mmengine model on one batch, like its test loop.

    Args:
        model: A ``BaseModel``, or a plain module that takes the batch.
        batch: Collated batch.
    """
    if hasattr(model, 'test_step'):
        return model.test_step(batch)
    return model(batch)


def apply_rewrites(
    model: nn.Module,
    batches: Sequence[Any],
    rewrites: Sequence[Mapping[str, Any]],
    *,
    forward: Forward = run_batch,
    qconfig: QConfig | None = None,
) -> list[Any]:
    """Run the rewrites on the float model and return their reports."""
    stats = RewriteStats(batches=batches, forward=forward, qconfig=qconfig)
    reports = []
    if rewrites:
        flush_subnormal(model)
    for rewrite in build_rewrites(rewrites):
        report = rewrite(model, stats)
        plain = report.to_dict() if hasattr(report, 'to_dict') else report
        reports.append(to_plain(plain))
    return reports
