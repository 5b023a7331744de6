"""The end of a training: freeze the model and write its file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.runner import Runner

from taskptq.engine.ptq_hook import unwrap
from taskptq.engine.quantization_report import write_results
from taskptq.qat.checks import dataset_meta
from taskptq.reconstruction.freeze import freeze
from taskptq.version import __version__

__all__ = ['write_trained']


def write_trained(
    runner: Runner,
    report: Mapping[str, Any],
    *,
    out: Path,
    structure: Mapping[str, Any],
) -> dict[str, Any]:
    """Round a trained model to its grids, and write its quantized file.

    Args:
        runner: Runner of the trained model, changed in place.
        report: Report so far.
        out: The file.
        structure: What the model consists of, for the file.

    Returns:
        The complete report.
    """
    model = unwrap(runner.model)
    frozen = freeze(model)
    model.eval()
    out.parent.mkdir(parents=True, exist_ok=True)
    return write_results(
        model,
        {**report, 'taskptq': __version__, 'freeze': frozen.to_dict()},
        work_dir=Path(runner.work_dir),
        out=out,
        meta={'dataset_meta': dataset_meta(runner)},
        structure=structure,
    )
