"""The Python entry points: quantize a model, and load a quantized one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import nn

from taskptq.analysis.page.render import check_packages
from taskptq.core.rules import Flag
from taskptq.core.setting_error import SettingError, check_keys, refuse
from taskptq.engine.calibration_config import CalibrationConfig
from taskptq.engine.calibration_data import build_calibration
from taskptq.engine.checkpoint_file import (
    local_file,
    read_checkpoint,
)
from taskptq.engine.config_file import read_config
from taskptq.engine.config_model import (
    build_model,
    evaluation_source,
    load_config,
)
from taskptq.engine.config_quantization import quantize_config
from taskptq.engine.evaluation import write_page
from taskptq.engine.file_choices import FileChoices
from taskptq.engine.file_meta import file_meta, recipe_label
from taskptq.engine.in_memory import Forward, quantize_in_memory
from taskptq.engine.onnx_export import export_from_config
from taskptq.engine.onnx_source import OnnxSource
from taskptq.engine.recipe_source import with_recipe
from taskptq.engine.refusals import (
    refuse_unwritable_file,
)
from taskptq.engine.restore import restore_model
from taskptq.engine.sensitivity import sensitivity

__all__ = [
    'build_model',
    'export_onnx',
    'load_quantized',
    'quantize',
    'read_config',
    'read_fragment',
    'sensitivity',
]


def read_fragment(
    value: Mapping[str, Any] | str | Path | None, *, key: str
) -> dict[str, Any] | None:
    """Return one setting of a fragment, or the setting itself.

    Args:
        value: The dict; or path of a config fragment that has it; or None.
        key: Its name there: ``qconfig``, ``reconstruction``, ``calibration``.

    Raises:
        ValueError: If the fragment has no such key.
    """
    if value is None:
        return None
    if isinstance(value, Mapping):
        return dict(value)
    fragment = read_config(value)
    if key not in fragment:
        raise ValueError(f'{value} sets no {key}')
    found = fragment.to_dict()[key]
    return None if found is None else dict(found)


def load_quantized(
    config_or_model: Config | str | Path | nn.Module,
    checkpoint: str | Path,
    *,
    device: str | torch.device | None = None,
) -> nn.Module:
    """Return the model of a quantized file, ready to evaluate.

    Args:
        config_or_model: Config of the float model, or its path; or the float
            model itself, with any weights, which is changed in place.
        checkpoint: Quantized file.
        device: Where to put the model; None leaves a given model where it
            is, and builds one on the CPU.

    Raises:
        QuantizedCheckpointError: If the file is damaged, of another schema,
            or of another model.
        ValueError: If it is no quantized file, or see ``read_checkpoint``.
    """
    payload = read_checkpoint(local_file(checkpoint))
    if isinstance(config_or_model, nn.Module):
        model = config_or_model
        restore_model(payload, model)
        return model if device is None else model.to(device)
    model = build_model(config_or_model, device=device or 'cpu')
    restore_model(payload, model)
    model.dataset_meta = payload['meta'].get('dataset_meta', {})
    return model


def export_onnx(
    config: Config | str | Path,
    checkpoint: str | Path,
    *,
    out: str | Path,
    target: str = 'onnxruntime',
    size: tuple[int, int] | None = None,
    dynamic: bool | None = None,
    opset: int = 21,
    float_model: bool = False,
    num_images: int = 16,
    gate_limit: float | None = None,
    exporter: str = 'torchscript',
    end_to_end: bool = False,
    trust_checkpoint: bool = False,
) -> list[Any]:
    """Write a quantized (or float) model as ONNX files that a runtime runs.

    Args:
        config: Config of the float model, or its path.
        checkpoint: Quantized file; with ``float_model`` a float checkpoint.
        out: File to write, ``*.onnx``; further parts of a model, such as a
            RoI head, get files beside it.
        target: ``onnxruntime``, ``openvino`` or ``tensorrt``.
        size: Height and width of the images; None takes that of the
            calibration images.
        dynamic: Leave the size of the images free; None does so if the
            calibration images come in several sizes, ``size`` is None and
            the network can be written like that.
        opset: Version of the ONNX operators, 13 to 21.
        float_model: Export a float model.
        num_images: Training images on which grids that the runtime needs and
            the model lacks are calibrated; 0 exports without data, then
            ``size`` is needed.
        gate_limit: Least signal to noise ratio, in dB, with which SiLU and
            its kin run in integers in ONNX Runtime; higher is more precise
            and slower. None is 24.
        exporter: What traces the network: ``torchscript``, or ``dynamo``
            (torch.export), which is slower: for networks where the first one
            fails.
        end_to_end: Let the file of a one-stage detector return boxes: its
            decoding and NMS are traced as well, for one image of a fixed
            size, and the export fails unless they find the host's boxes in
            a second image.
        trust_checkpoint: See :func:`quantize`.

    Returns:
        The report of each file.

    Raises:
        QuantizedCheckpointError: See :func:`load_quantized`.
        ValueError: If the checkpoint is of the other kind, the model has no
            network part, or a layer has no form in ONNX.
    """
    refuse_unwritable_file(out, name='out')
    config = load_config(config)
    source = OnnxSource.read(
        local_file(checkpoint),
        float_model=float_model,
        trust_checkpoint=trust_checkpoint,
    )
    model = build_model(config)
    source.load_into(model)
    batches: Sequence[Any] = ()
    if num_images:
        images = CalibrationConfig.from_dict({'num_images': num_images})
        default = (config.get('train_dataloader') or {}).get('dataset')
        evaluation = evaluation_source(config)
        batches = build_calibration(images, source=evaluation, default=default)
        model.dataset_meta = getattr(evaluation.dataset, 'metainfo', {})
    return export_from_config(
        model,
        config,
        source=source,
        batches=batches,
        out=out,
        target=target,
        size=size,
        dynamic=dynamic,
        opset=opset,
        choices=FileChoices(
            gate_limit=gate_limit, exporter=exporter, end_to_end=end_to_end
        ),
    )


def default_device() -> str:
    """Return ``cuda`` if there is one, else ``cpu``."""
    return 'cuda' if torch.cuda.is_available() else 'cpu'


def quantize(
    config_or_model: Config | str | Path | nn.Module,
    checkpoint_or_batches: str | Path | Iterable[Any],
    *,
    recipe: str | Path | Mapping[str, Any] | Sequence[Any] | None = None,
    qconfig: Mapping[str, Any] | str | Path | None = None,
    reconstruction: Mapping[str, Any] | str | Path | None = None,
    calibration: Mapping[str, Any] | str | Path | None = None,
    rewrites: list[dict[str, Any]] | None = None,
    loss: Mapping[str, Any] | None = None,
    mixed_precision: Mapping[str, Any] | None = None,
    forward: Forward | None = None,
    out: str | Path | None = None,
    work_dir: str | Path | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    resume: bool = True,
    trust_checkpoint: bool = False,
    allow_overlap: bool = False,
    report: bool = False,
) -> tuple[nn.Module, dict[str, Any]]:
    """Quantize a float model: of a config, or one in memory.

        model, report = quantize('retinanet.py', 'float.pth', recipe='w8a8')
        model, report = quantize(model, batches, recipe='w8a8', out='q.pth')

    A model in memory is changed in place, and nothing is written unless
    ``out`` or ``work_dir`` is given.

    Args:
        config_or_model: Config of an mmengine, mmdet or mmseg model, or its
            path; or any ``nn.Module`` with float weights.
        checkpoint_or_batches: For a config the float checkpoint, path or
            URL; for a model the calibration batches, each as the model takes
            it (a dict is passed as keyword arguments, a list or tuple as
            positional ones).
        recipe: Name such as ``w4a4_qdrop``, dict of its parts, config file
            that sets them, or a list of these, merged in order. Parts that
            are given here as well replace those of the recipe.
        qconfig: The quantizers, or a fragment that sets them; without
            ``recipe``, the fragment's ``reconstruction``, ``rewrites`` and
            ``loss`` count unless they are given here.
        reconstruction: Settings, or a fragment; None leaves it out.
        calibration: Settings, or a fragment; None takes 256 training images.
            With a model in memory only ``unreached``.
        rewrites: Configs of ModelRewrites that run first.
        loss: Config of a ReconLoss.
        mixed_precision: How bits of single tensors are chosen, see
            ``MixedPrecisionConfig``.
        forward: With a model in memory, ``forward(model, batch)`` runs it;
            None calls it as above.
        out: Quantized file; None is ``quantized.pth`` in ``work_dir``.
        work_dir: Folder of the reports; None is the folder of ``out``, or
            ``work_dirs/<config name>_ptq``.
        device: None takes a GPU if there is one.
        seed: Seed of the choice of images and of the reconstruction.
        resume: Go on with a reconstruction that was interrupted.
        trust_checkpoint: Unpickle a checkpoint that is not plain, which runs
            code that it names.
        allow_overlap: Accept calibration images of the test split.
        report: Write a page on the result, ``report.html`` beside it.

    Returns:
        The quantized model in eval mode, and the report.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If a setting is impossible, the checkpoint is damaged,
            unsafe or of another model, the calibration set is refused, or
            results cannot be written.
    """
    for name, flag in (
        ('resume', resume),
        ('allow_overlap', allow_overlap),
        ('trust_checkpoint', trust_checkpoint),
        ('report', report),
    ):
        Flag().read(flag, name=name)
    of_recipe = {
        'qconfig': qconfig,
        'reconstruction': reconstruction,
        'loss': loss,
        'rewrites': rewrites,
        'mixed_precision': mixed_precision,
    }
    meta = file_meta(recipe=recipe_label(recipe, **of_recipe))
    written = {'out': out, 'work_dir': work_dir, 'seed': seed}
    settings = read_fragment(calibration, key='calibration') or {}
    if isinstance(config_or_model, nn.Module):
        refuse_for_model(
            settings,
            device=device,
            trust_checkpoint=trust_checkpoint,
            allow_overlap=allow_overlap,
            report=report,
        )
        report = quantize_in_memory(
            config_or_model,
            checkpoint_or_batches,
            parts=read_parts(recipe, **of_recipe),
            forward=forward,
            resume=resume,
            meta=meta,
            **settings,
            **written,
        )
        return config_or_model, report
    if forward is not None:
        raise refuse('forward', forward, 'it is for models in memory only')
    # Its custom_imports may register what the recipe names.
    config = load_config(config_or_model)
    if report:
        check_packages()
    model, found = quantize_config(
        config,
        checkpoint_or_batches,
        parts=read_parts(recipe, **of_recipe),
        calibration=settings
        | ({'allow_overlap': True} if allow_overlap else {}),
        device=device or default_device(),
        resume=resume,
        trust_checkpoint=trust_checkpoint,
        meta=meta,
        **written,
    )
    if report and 'checkpoint' in found:
        write_page(
            found['checkpoint'],
            config=config,
            float_checkpoint=checkpoint_or_batches,
            device=device or default_device(),
            trust_checkpoint=trust_checkpoint,
        )
    return model, found


def refuse_for_model(settings: Mapping[str, Any], **options: Any) -> None:
    """Refuse what only the models of configs have.

    Args:
        settings: Of the calibration.
        options: Options of :func:`quantize`; False and None are not given.

    Raises:
        SettingError: Naming the first of them.
    """
    for name, value in options.items():
        if value:
            raise refuse(
                name, value, 'it is for models of configs, not in memory'
            )
    check_keys(settings, ('unreached',), name='calibration')


def read_parts(
    recipe: Any,
    *,
    qconfig: Any,
    reconstruction: Any,
    loss: Any,
    rewrites: Any,
    mixed_precision: Any = None,
) -> dict[str, Any]:
    """Return a recipe's parts, from what :func:`quantize` was given.

    Args:
        recipe: See :func:`quantize`, as for all others.
        qconfig: Settings or a fragment.
        reconstruction: Settings or a fragment.
        loss: Config of a ReconLoss.
        rewrites: Configs of ModelRewrites.
        mixed_precision: Settings of the choice of bits.

    Raises:
        SettingError: If neither ``recipe`` nor ``qconfig`` is given.
    """
    if recipe is None and qconfig is None:
        raise SettingError(
            'recipe', ': give one, such as w4a4_qdrop, or a qconfig'
        )
    if recipe is None and isinstance(qconfig, (str, Path)):
        fragment = read_config(qconfig).to_dict()
        if reconstruction is None:
            reconstruction = fragment.get('reconstruction')
        rewrites = fragment.get('rewrites') if rewrites is None else rewrites
        loss = fragment.get('loss') if loss is None else loss
    return with_recipe(
        recipe,
        owner='quantize',
        qconfig=read_fragment(qconfig, key='qconfig'),
        reconstruction=read_fragment(reconstruction, key='reconstruction'),
        loss=loss,
        rewrites=rewrites,
        mixed_precision=mixed_precision,
    )
