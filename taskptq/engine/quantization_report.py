"""Write the reports of a quantization and the quantized file."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.dist import barrier, is_main_process
from mmengine.logging import print_log
from torch import nn

from taskptq.engine.builder import to_plain
from taskptq.engine.commit import source_commit
from taskptq.export.checkpoint import pack_model, save
from taskptq.prepare import SwapReport

STATE_DIR = 'reconstruction_state'


def swap_summary(report: SwapReport) -> dict[str, Any]:
    """Return the counts of a swap for ``quantization_report.json``."""
    summary: dict[str, Any] = {
        'num_quantized': report.count('quantized'),
        'num_partly': report.count('partly'),
        'num_float': report.count('float'),
        'num_unreached': report.count('unreached'),
    }
    if report.products is not None:
        summary['share_of_macs'] = report.products.share
    return summary


def structure_of(report: SwapReport) -> dict[str, Any]:
    """Return a model's structure for the quantized file, plain types."""
    structure: dict[str, Any] = {'decisions': report.decisions.to_dict()}
    if report.products is not None:
        structure['products'] = report.products.to_dict()
    return to_plain(structure)


def write_swap_report(report: SwapReport, work_dir: Path) -> None:
    """Write each layer's outcome as JSON and as a table; main process."""
    if not is_main_process():
        return
    report.save(work_dir / 'swap_report.json')
    (work_dir / 'swap_report.txt').write_text(
        report.table() + '\n', encoding='utf-8'
    )
    print_log(
        f'{report.summary()}; see {work_dir / "swap_report.txt"}',
        logger='current',
    )


def codec_of(recipe: Mapping[str, Any]) -> str:
    """Return how a recipe's file is coded; zeros need a coder to be small."""
    size = recipe['qconfig'].get('size')
    if size is None:
        return 'dense' if recipe['qconfig'].get('sparsity') is None else 'auto'
    return str(size['codec'])


def write_results(
    model: nn.Module,
    report: dict[str, Any],
    *,
    work_dir: Path,
    out: Path,
    meta: Mapping[str, Any] | None,
    structure: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the quantized file and the report; main process only.

    Args:
        model: Frozen model.
        report: Report of all steps, with the recipe.
        work_dir: Folder of the report.
        out: Quantized file.
        meta: Information for the file in plain types.
        structure: See :func:`structure_of`.

    Returns:
        The report; in the main process with the file's path and size.
    """
    # Another rank may still write the state that is removed below.
    barrier()
    if is_main_process():
        payload = pack_model(
            model,
            recipe=report['recipe'],
            meta=to_plain({'model': type(model).__name__, **(meta or {})}),
            structure=structure,
        )
        save(payload, out, codec=codec_of(report['recipe']))
        report |= {
            'checkpoint': str(out),
            'file_bytes': out.stat().st_size,
            'digest': payload['digest'],
            'commit': source_commit(),
        }
        limit = report.get('size', {}).get('limit_bytes', math.inf)
        if report['file_bytes'] > limit:
            print_log(
                f'{out} has {report["file_bytes"]:,} bytes, more than the '
                f'{limit:,} asked for: roundings spread the codes beyond the '
                'estimate; ask for less',
                logger='current',
                level=logging.WARNING,
            )
        text = json.dumps(report, indent=1) + '\n'
        target = work_dir / 'quantization_report.json'
        target.write_text(text, encoding='utf-8')
        # The finished run no longer needs its resume state.
        shutil.rmtree(work_dir / STATE_DIR, ignore_errors=True)
        print_log(
            f'Quantized in {report["seconds"]:.1f} s: {out} '
            f'({report["file_bytes"] / 2**20:.2f} MiB), report {target}',
            logger='current',
        )
    barrier()
    return report
