"""The whole of a quantization, once: used by the hook and by the API.

rewrites -> prepare -> calibrate -> reconstruct -> freeze -> pack, with the
reports that a user reads afterwards.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.dist import barrier, is_main_process
from mmengine.logging import print_log
from torch import nn

from taskptq.calibration.calibrate import CalibrationReport, calibrate
from taskptq.core.distributed import gathered
from taskptq.engine.builder import (
    build_adapter,
    build_loss,
    build_qconfig,
    build_rewrites,
    registered_part,
    to_plain,
)
from taskptq.engine.contexts import seeded, shared_log
from taskptq.engine.hook_settings import check_recipe
from taskptq.export.checkpoint import (
    pack_model,
    save,
)
from taskptq.modules.base import quant_modules
from taskptq.prepare import Decisions, QConfig, SwapReport, prepare
from taskptq.prepare.blocks import Unit
from taskptq.prepare.products import trace_products
from taskptq.reconstruction.freeze import freeze
from taskptq.reconstruction.reconstruct import (
    ReconstructionConfig,
    reconstruct,
)
from taskptq.reconstruction.state_folder import locked
from taskptq.registry import RECON_LOSSES, REWRITES
from taskptq.version import __version__

__all__ = ['Recipe', 'RewriteStats', 'quantize_model', 'run_batch']

STATE_DIR = 'reconstruction_state'
# Where this machine keeps what; no part of how a model is quantized.
LOCAL_SETTINGS = ('cache_dir', 'cache_disk_bytes')


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is quantized.

    Args:
        qconfig: Quantizers of each layer.
        reconstruction: Settings of the reconstruction; None leaves it out.
        loss: Config of its ReconLoss; None is the mean squared error.
        rewrites: Configs of the ModelRewrites that run first.
        calibration: What the file records about the calibration images.
        seed: Seed of everything drawn at random.
    """

    qconfig: QConfig
    reconstruction: Mapping[str, Any] | None = None
    loss: Mapping[str, Any] | None = None
    rewrites: Sequence[Mapping[str, Any]] = ()
    calibration: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    @classmethod
    def from_config(
        cls,
        qconfig: Mapping[str, Any] | QConfig,
        *,
        reconstruction: Mapping[str, Any] | None = None,
        loss: Mapping[str, Any] | None = None,
        rewrites: Sequence[Mapping[str, Any]] | None = None,
        calibration: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> Recipe:
        """Read a config's dicts and check them.

        Args:
            qconfig: See ``QConfig.from_dict``.
            reconstruction: See ``ReconstructionConfig``; None leaves it out.
            loss: Config of a ReconLoss; None is ``reconstruction['loss']``.
            rewrites: Configs of ModelRewrites.
            calibration: What to record about the images, plain.
            seed: Seed where ``reconstruction`` has none.

        Raises:
            ValueError: If a key or value is impossible.
        """
        check_recipe(
            reconstruction=reconstruction,
            loss=loss,
            rewrites=rewrites,
            seed=seed,
        )
        settings = None
        if reconstruction is not None:
            settings = {'seed': seed, **to_plain(reconstruction)}
            own_loss = settings.pop('loss', None)
            loss = own_loss if loss is None else loss
            ReconstructionConfig.from_dict(settings)
        elif loss is not None:
            raise ValueError(
                'a loss is of no use without reconstruction: give '
                'reconstruction=dict(...) or leave loss out'
            )
        return cls(
            qconfig=build_qconfig(qconfig),
            reconstruction=settings,
            loss=registered_part(RECON_LOSSES, loss),
            rewrites=[
                registered_part(REWRITES, one) for one in rewrites or ()
            ],
            calibration=dict(calibration or {}),
            seed=seed,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, as the quantized file keeps them."""
        settings = to_plain(self.reconstruction)
        if settings is not None:
            for name in LOCAL_SETTINGS:
                settings.pop(name, None)
        return {
            'qconfig': to_plain(self.qconfig.to_dict()),
            'reconstruction': settings,
            'loss': to_plain(self.loss),
            'rewrites': to_plain(self.rewrites),
            'calibration': to_plain(self.calibration),
            'seed': self.seed,
        }

    def digest(self) -> str:
        """Return a short name that differs between recipes."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class RewriteStats:
    """What a ModelRewrite may look at: the calibration data.

    Args:
        batches: Calibration batches of this rank.
        forward: Runs a model on one batch.
    """

    batches: Sequence[Any]
    forward: Any


@dataclass(frozen=True, kw_only=True)
class Ending:
    """What to do with a reconstructed model instead of freezing it.

    Args:
        on_trained: Called with each unit while its roundings are soft.
        finish: Called with the model; returns entries of the report.
    """

    on_trained: Callable[[Unit], None]
    finish: Callable[[nn.Module], dict[str, Any]]


Forward = Callable[[nn.Module, Any], Any]


def run_batch(model: nn.Module, batch: Any) -> Any:
    """Run an mmengine model on one batch as its test loop does.

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
) -> list[Any]:
    """Run the rewrites on the float model; returns their plain reports."""
    stats = RewriteStats(batches=batches, forward=forward)
    reports = []
    for rewrite in build_rewrites(rewrites):
        report = rewrite(model, stats)
        plain = report.to_dict() if hasattr(report, 'to_dict') else report
        reports.append(to_plain(plain))
    return reports


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
    """Reconstruct if the recipe says so; returns the plain report."""
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
    """Quantize a float model in place and write what came of it.

    The model ends in eval mode, quantized for good. ``work_dir`` receives
    ``swap_report.json``, ``swap_report.txt`` and
    ``quantization_report.json``; ``out`` the quantized file.

    Args:
        model: Float model with its weights, not wrapped.
        batches: Collated calibration batches of this rank.
        recipe: How to quantize.
        work_dir: Folder of reports and of the state to resume from.
        out: Quantized file; None is ``quantized.pth`` in ``work_dir``.
        resume: Go on with a reconstruction that was interrupted.
        shared_dir: Folder where recipes that reconstruct the same blocks in
            the same way, and differ in what follows on the network, find
            each other's; None shares nothing. Nothing in it is removed.
        meta: Plain facts for the file, e.g. ``dataset_meta``.
        forward: Runs the model on one batch.
        adapter: The model's adapter; None is that of its class.

    Returns:
        The report, plain types.

    Raises:
        FolderInUseError: If another run uses ``work_dir``.
        RuntimeError: If the model is quantized already.
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
    """Do all but writing the file; see :func:`quantize_model`.

    Args:
        model: Float model with its weights, not wrapped.
        batches: Collated calibration batches of this rank.
        recipe: How to quantize.
        work_dir: Folder of reports and of the state to resume from.
        resume: Go on with a reconstruction that was interrupted.
        ending: What to do instead of freezing; then nothing is saved or
            resumed.
        shared_dir: As in :func:`quantize_model`.
        forward: Runs the model on one batch.
        adapter: The model's adapter; None is that of its class.

    Returns:
        The report, without the file's entries; and what the file keeps of
        the model's structure.
    """
    if not batches:
        raise ValueError('calibration set is empty: give at least one batch')
    start = time.perf_counter()
    model.eval()
    if adapter is None:
        adapter = build_adapter(model)
    with seeded(recipe.seed), shared_log():
        rewritten = apply_rewrites(
            model, batches, recipe.rewrites, forward=forward
        )
        swapped = prepare_in_place(
            model, recipe.qconfig, batch=batches[0], forward=forward
        )
        calibrated = calibrate(
            model,
            batches,
            forward=forward,
            unreached=recipe.calibration.get('unreached', 'error'),
        )
        report_what_ran(
            model,
            batches,
            swapped=swapped,
            calibrated=calibrated,
            work_dir=work_dir,
            forward=forward,
        )
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
        ended = (
            {'freeze': freeze(model).to_dict()}
            if ending is None
            else ending.finish(model)
        )
    model.eval()
    report = {
        'taskptq': __version__,
        'recipe': recipe.to_dict(),
        'rewrites': rewritten,
        'swap': swap_summary(swapped),
        'calibration': calibrated.to_dict(),
        'reconstruction': rebuilt,
        **ended,
        'seconds': time.perf_counter() - start,
    }
    return report, structure_of(swapped)


def prepare_in_place(
    model: nn.Module,
    qconfig: QConfig,
    *,
    batch: Any = None,
    decisions: Decisions | None = None,
    forward: Forward = run_batch,
) -> SwapReport:
    """Fold and swap; new quantizers go where the model's parameters are.

    Args:
        model: Float model in eval mode.
        qconfig: Recipe of the quantizers.
        batch: What each fold and swap is compared on; see ``prepare``.
        decisions: What to repeat instead, without data.
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
    parameter = next(model.parameters(), None)
    if parameter is not None:
        model.to(parameter.device)
    return report


def on_all_ranks(names: set[str]) -> set[str]:
    """Keep the names that every rank has: all must train one structure."""
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
    """Trace the calibrated model, and write what of it runs quantized.

    Args:
        model: Prepared and calibrated.
        batches: Calibration batches.
        swapped: Report of the swap, which gets to say what ran.
        calibrated: Report of the calibration.
        work_dir: Where ``swap_report.json`` and ``swap_report.txt`` go.
        forward: Runs the model on one batch.
    """
    products = trace_products(
        model, [batches[i] for i in calibrated.covering], forward=forward
    )
    swapped.add_products(products, left_float=calibrated.left_float)
    write_swap_report(swapped, work_dir)


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
    """Return what a quantized file keeps of a model's structure, plain."""
    structure: dict[str, Any] = {'decisions': report.decisions.to_dict()}
    if report.products is not None:
        structure['products'] = report.products.to_dict()
    return to_plain(structure)


def refuse_quantized(model: nn.Module) -> None:
    """Raise if a model has quantized counterparts already.

    Raises:
        RuntimeError: Names the first of them.
    """
    found = quant_modules(model)
    if found:
        raise RuntimeError(
            f'the model is quantized already (e.g. {found[0][0]}): build it '
            'anew from its config'
        )


def write_swap_report(report: SwapReport, work_dir: Path) -> None:
    """Write the fate of each layer, as JSON and as a table; main process."""
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
        report: What was done, with the recipe.
        work_dir: Folder of the report.
        out: Quantized file.
        meta: Plain facts for the file.
        structure: See :func:`structure_of`.

    Returns:
        The report, with the file's path and size where it was written.
    """
    # Another rank may still be writing the state that is removed below.
    barrier()
    if is_main_process():
        payload = pack_model(
            model,
            recipe=report['recipe'],
            meta=to_plain({'model': type(model).__name__, **(meta or {})}),
            structure=structure,
        )
        save(payload, out)
        report |= {
            'checkpoint': str(out),
            'file_bytes': out.stat().st_size,
            'digest': payload['digest'],
        }
        text = json.dumps(report, indent=1) + '\n'
        target = work_dir / 'quantization_report.json'
        target.write_text(text, encoding='utf-8')
        # The state served to resume what is now finished.
        shutil.rmtree(work_dir / STATE_DIR, ignore_errors=True)
        print_log(
            f'Quantized in {report["seconds"]:.1f} s: {out} '
            f'({report["file_bytes"] / 2**20:.2f} MiB), report {target}',
            logger='current',
        )
    barrier()
    return report
