"""The complete quantization, used by the hook and by the API.

rewrites -> prepare -> calibrate -> reconstruct -> freeze -> pack, with the
reports that a user reads afterwards.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import barrier, is_main_process
from torch import nn

from taskptq.analysis.sensitivity.hopeless import warn_hopeless
from taskptq.calibration.calibrate import CalibrationReport, calibrate
from taskptq.core.distributed import gathered
from taskptq.engine.builder import (
    build_adapter,
    build_loss,
)
from taskptq.engine.contexts import seeded, shared_log
from taskptq.engine.mixed_precision import Calibrated, choose_precision
from taskptq.engine.quantization_report import (
    STATE_DIR,
    structure_of,
    swap_summary,
    write_results,
    write_swap_report,
)
from taskptq.engine.recipe import Recipe
from taskptq.engine.rewriting import (
    Forward,
    RewriteStats,
    apply_rewrites,
    run_batch,
)
from taskptq.engine.size_step import fit_size, num_values, trim_floats
from taskptq.engine.sparsity_step import make_sparse
from taskptq.methods.rewriting.replay import structures
from taskptq.modules.base import quant_modules
from taskptq.prepare import Decisions, QConfig, SwapReport, prepare
from taskptq.prepare.blocks import Unit
from taskptq.prepare.product_rows import add_own_products
from taskptq.prepare.products import trace_products
from taskptq.reconstruction.config import ReconstructionConfig
from taskptq.reconstruction.freeze import freeze
from taskptq.reconstruction.reconstruct import reconstruct
from taskptq.reconstruction.state_folder import locked
from taskptq.version import __version__

__all__ = [
    'Forward',
    'RewriteStats',
    'apply_rewrites',
    'quantize_model',
    'run_batch',
]


@dataclass(frozen=True, kw_only=True)
class Ending:
    """Callbacks that replace the freezing of a reconstructed model.

    Args:
        on_trained: Called with each unit while its roundings are soft.
        finish: Called with the model; returns entries of the report.
    """

    on_trained: Callable[[Unit], None]
    finish: Callable[[nn.Module], dict[str, Any]]


def reconstruct_model(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    recipe: Recipe,
    adapter: Any,
    work_dir: Path,
    resume: bool,
    ending: Ending | None = None,
    shared_dir: Path | None = None,
    forward: Forward = run_batch,
) -> dict[str, Any] | None:
    """Reconstruct if the recipe has a reconstruction; return the report."""
    if recipe.reconstruction is None:
        return None
    state_dir = None
    if ending is None:
        state_dir = work_dir / STATE_DIR / recipe.digest()
        if not resume and is_main_process():
            shutil.rmtree(state_dir, ignore_errors=True)
    barrier()
    report = reconstruct(
        model,
        batches,
        ReconstructionConfig.from_dict(recipe.reconstruction),
        forward=forward,
        loss=build_loss(recipe.loss),
        adapter=adapter,
        state_dir=state_dir,
        shared_dir=shared_dir if ending is None else None,
        on_trained=None if ending is None else ending.on_trained,
    )
    return report.to_dict()


# The caller may have switched gradients off; reconstruction needs them.
@torch.inference_mode(mode=False)
@torch.enable_grad()
def quantize_model(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    recipe: Recipe,
    work_dir: str | Path,
    out: str | Path | None = None,
    resume: bool = True,
    shared_dir: str | Path | None = None,
    meta: Mapping[str, Any] | None = None,
    forward: Forward = run_batch,
    adapter: Any = None,
) -> dict[str, Any]:
    """Quantize a float model in place, write its file and reports.

    The model ends up in eval mode, permanently quantized. ``work_dir``
    receives ``swap_report.json``, ``swap_report.txt`` and
    ``quantization_report.json``; ``out`` the quantized file.

    Args:
        model: Float model with its weights, not wrapped.
        batches: Collated calibration batches of this rank.
        recipe: How to quantize.
        work_dir: Folder of reports and of the state to resume from.
        out: Quantized file; None is ``quantized.pth`` in ``work_dir``.
        resume: Continue an interrupted reconstruction.
        shared_dir: Folder in which recipes that reconstruct the same blocks
            in the same way, and differ only in the network phase, share
            them; None shares nothing. Nothing in it is removed.
        meta: Information for the file in plain types, e.g. ``dataset_meta``.
        forward: Runs the model on one batch.
        adapter: The model's adapter; None is that of its class.

    Returns:
        The report, plain types.

    Raises:
        FolderInUseError: If another run uses ``work_dir``.
        RuntimeError: If the model is already quantized.
        ValueError: See the steps, e.g. ``calibrate``.
    """
    refuse_quantized(model)
    work_dir = Path(work_dir)
    out = work_dir / 'quantized.pth' if out is None else Path(out)
    for folder in (work_dir, out.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(work_dir / STATE_DIR):
        report, structure = run_steps(
            model,
            batches,
            recipe=recipe,
            work_dir=work_dir,
            resume=resume,
            shared_dir=None if shared_dir is None else Path(shared_dir),
            forward=forward,
            adapter=adapter,
        )
        return write_results(
            model,
            report,
            work_dir=work_dir,
            out=out,
            meta=meta,
            structure=structure,
        )


def run_steps(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    recipe: Recipe,
    work_dir: Path,
    resume: bool,
    ending: Ending | None = None,
    shared_dir: Path | None = None,
    forward: Forward = run_batch,
    adapter: Any = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Do everything but write the file; see :func:`quantize_model`.

    Args:
        model: Float model with its weights, not wrapped.
        batches: Collated calibration batches of this rank.
        recipe: How to quantize.
        work_dir: Folder of reports and of the state to resume from.
        resume: Continue an interrupted reconstruction.
        ending: Callbacks instead of freezing; nothing is then saved or
            resumed.
        shared_dir: See :func:`quantize_model`.
        forward: Runs the model on one batch.
        adapter: The model's adapter; None is that of its class.

    Returns:
        The report without the file's entries, and the structure for the
        file.
    """
    if not batches:
        raise ValueError('calibration set is empty: give at least one batch')
    start = time.perf_counter()
    model.eval()
    float_values = num_values(model)
    if adapter is None:
        adapter = build_adapter(model)
    with seeded(recipe.seed), shared_log():
        rewritten = apply_rewrites(
            model,
            batches,
            recipe.rewrites,
            forward=forward,
            qconfig=recipe.qconfig,
        )
        swapped = prepare_in_place(
            model, recipe.qconfig, batch=batches[0], forward=forward
        )
        sparse = make_sparse(
            model, batches, recipe=recipe, swapped=swapped, adapter=adapter
        )
        calibrated = calibrate(
            model,
            batches,
            forward=forward,
            unreached=recipe.calibration.get('unreached', 'error'),
        )
        subject = Calibrated(
            model=model,
            batches=batches,
            forward=forward,
            adapter=adapter,
            swapped=swapped,
            covering=calibrated.covering,
        )
        choice = choose_precision(subject, recipe=recipe)
        recipe = choice.recipe
        hopeless = warn_hopeless(model, batches, forward=forward)
        report_what_ran(
            model,
            batches,
            swapped=swapped,
            calibrated=calibrated,
            work_dir=work_dir,
            forward=forward,
        )
        sized = fit_size(subject, recipe=recipe, float_values=float_values)
        rebuilt = reconstruct_model(
            model,
            batches,
            recipe=recipe,
            adapter=adapter,
            work_dir=work_dir,
            resume=resume,
            ending=ending,
            shared_dir=shared_dir,
            forward=forward,
        )
        trim_floats(model, recipe=recipe)
        ended = (
            {'freeze': freeze(model).to_dict()}
            if ending is None
            else ending.finish(model)
        )
        model.eval()
        concluded = choice.conclude(model, work_dir=work_dir)
    report = {
        'taskptq': __version__,
        'recipe': recipe.to_dict(),
        'rewrites': rewritten,
        'swap': swap_summary(swapped),
        'calibration': calibrated.to_dict(),
        'warnings': [*calibrated.warnings, *hopeless],
        **concluded,
        **sparse,
        **sized,
        'reconstruction': rebuilt,
        **ended,
        'seconds': time.perf_counter() - start,
    }
    changes = structures(rewritten)
    added = {'rewrites': changes} if changes else {}
    return report, structure_of(swapped) | added


def prepare_in_place(
    model: nn.Module,
    qconfig: QConfig,
    *,
    batch: Any = None,
    decisions: Decisions | None = None,
    forward: Forward = run_batch,
) -> SwapReport:
    """Fold and swap; new quantizers go to the parameters' device.

    Args:
        model: Float model in eval mode.
        qconfig: Recipe of the quantizers.
        batch: Batch on which each fold and swap is verified; see
            ``prepare``.
        decisions: Recorded decisions to replay instead, without data.
        forward: Runs the model on one batch.
    """
    report = prepare(
        model,
        qconfig,
        batch=batch,
        forward=forward,
        decisions=decisions,
        agree=on_all_ranks,
    )
    if (parameter := next(model.parameters(), None)) is not None:
        model.to(parameter.device)
    return report


def on_all_ranks(names: set[str]) -> set[str]:
    """Keep the names common to all ranks, which must train one structure."""
    return set.intersection(*gathered(names))


def report_what_ran(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    swapped: SwapReport,
    calibrated: CalibrationReport,
    work_dir: Path,
    forward: Forward = run_batch,
) -> None:
    """Trace the calibrated model and report what runs quantized.

    Args:
        model: Prepared and calibrated model.
        batches: Calibration batches.
        swapped: Report of the swap; gets the traced products.
        calibrated: Report of the calibration.
        work_dir: Folder for ``swap_report.json`` and ``swap_report.txt``.
        forward: Runs the model on one batch.
    """
    covering = [batches[i] for i in calibrated.covering]
    products = trace_products(model, covering, forward=forward)
    add_own_products(swapped, model)
    swapped.add_products(products, left_float=calibrated.left_float)
    write_swap_report(swapped, work_dir)


def refuse_quantized(model: nn.Module) -> None:
    """Refuse a model that has quantized counterparts.

    Raises:
        RuntimeError: If it has any; names the first.
    """
    if found := quant_modules(model):
        raise RuntimeError(
            f'the model is quantized already (e.g. {found[0][0]}): rebuild '
            'it from its config'
        )
