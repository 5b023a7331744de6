"""From a model and a batch of images to the files of an export."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import MMLogger
from torch import Tensor, nn

from taskptq.core.progress import Progress
from taskptq.engine.datasets import leaf_datasets
from taskptq.engine.end_to_end import append_decoding, check_end_to_end
from taskptq.engine.file_choices import FileChoices
from taskptq.engine.free_sizes import FrozenSizeError, check_free_sizes
from taskptq.engine.network_parts import NetworkParts, parts_of
from taskptq.engine.onnx_decisions import check_decisions
from taskptq.engine.onnx_decode import decodes
from taskptq.engine.onnx_inputs import (
    at_size,
    preprocessed,
    random_batch,
    recorded_inputs,
)
from taskptq.engine.onnx_metadata import OnnxMetadata, part_path
from taskptq.engine.onnx_preprocess import preprocessing
from taskptq.engine.onnx_source import FLOAT, OnnxSource
from taskptq.engine.raw_outputs import MAIN, Part
from taskptq.engine.single_images import (
    first_image,
    one_by_one,
    without_batch,
)
from taskptq.export.runtime import OnnxFileError

__all__ = ['export_from_config', 'export_parts']


def export_parts(
    model: nn.Module,
    data: Mapping[str, Any],
    *,
    out: str | Path,
    meta: OnnxMetadata,
    opset: int,
    calibration: Sequence[Mapping[str, Any]] = (),
    pipeline: Sequence[Mapping[str, Any]] | None = None,
    choices: FileChoices | None = None,
) -> list[Any]:
    """Write the files of a model's network parts.

    Args:
        model: Float or quantized model with its weights, in eval mode.
        data: Preprocessed example batch; its size is that of the files.
        out: File of the main part; the others lie beside it.
        meta: What the files say; parts, preprocessing and decoding are set
            here.
        opset: Version of the ONNX operators.
        calibration: Preprocessed batches for grids that a runtime needs and
            the model lacks.
        pipeline: Transforms of the test set.
        choices: How they are written; None takes the defaults.

    Returns:
        The report of each file.

    Raises:
        ValueError: If the model has no known network part, a layer has no
            form in ONNX, or the size of the images cannot be free.
    """
    export = partial(
        _export_batch,
        model,
        out=out,
        meta=meta,
        opset=opset,
        calibration=calibration,
        pipeline=pipeline,
        choices=choices or FileChoices(),
    )
    try:
        return export(data)
    except FrozenSizeError as error:
        if not (error.is_batch and isinstance(data['inputs'], Tensor)):
            raise
        MMLogger.get_current_instance().warning(
            f'{error}. This file takes one image at a time: batches are run '
            'image by image.'
        )
    return export(first_image(data), single=True)


def _export_batch(
    model: nn.Module,
    data: Mapping[str, Any],
    *,
    out: str | Path,
    meta: OnnxMetadata,
    opset: int,
    calibration: Sequence[Mapping[str, Any]],
    pipeline: Sequence[Mapping[str, Any]] | None,
    choices: FileChoices,
    single: bool = False,
) -> list[Any]:
    """Write the parts for any batch, or for single images."""
    cut = parts_of(model)
    parts = cut.parts(data, dynamic=meta.input_size is None)
    runs = {part.name: part.network.named_outputs for part in parts}
    given = recorded_inputs(model, calibration, runs) if calibration else {}
    if single:
        parts = [without_batch(part) for part in parts]
        given[MAIN] = one_by_one(given.get(MAIN, ()))
    meta = replace(
        meta,
        parts=[part.name for part in parts],
        preprocessing=preprocessing(model, pipeline),
        decoding=described_decoding(cut, parts),
        export=_digest(meta, opset),
    )
    reports = []
    with Progress('export part', total=len(parts), parts=len(parts)) as shown:
        for index, part in enumerate(parts):
            shown.start_part(index, part.name or 'model')
            reports.append(
                _export_part(
                    part,
                    part_path(out, part.name),
                    meta=replace(meta, part=part.name),
                    opset=opset,
                    given=given.get(part.name, ()),
                    **choices.of_graph(),
                )
            )
    return reports


def _export_part(
    part: Part,
    path: Path,
    *,
    meta: OnnxMetadata,
    opset: int,
    given: Sequence[tuple[Tensor, ...]],
    **options: Any,
) -> Any:
    """Write the file of a part, and return its report."""
    from taskptq.export.onnx import export_onnx

    report = export_onnx(
        part.network,
        part.inputs,
        path,
        input_names=part.input_names,
        output_names=part.output_names,
        dynamic_axes=part.dynamic_axes,
        target=meta.target,
        opset=opset,
        metadata=meta.to_texts(),
        calibration=[tensors for tensors in given if fits(part, tensors)],
        **options,
    )
    check_free_sizes(part, path)
    return report


def fits(part: Part, tensors: Sequence[Tensor]) -> bool:
    """Whether a file of a part takes tensors, whose free sizes may differ."""
    return all(
        axis in part.dynamic_axes.get(name, {}) or size == example.shape[axis]
        for name, example, tensor in zip(
            part.input_names, part.inputs, tensors, strict=True
        )
        for axis, size in enumerate(tensor.shape)
    )


def described_decoding(
    cut: NetworkParts, parts: Sequence[Part]
) -> dict[str, Any] | None:
    """Return how the outputs are decoded; None if it takes the host."""
    decoding = cut.decoding()
    if decoding is None or not decodes(decoding, parts[0].output_names):
        return None
    return decoding


def _digest(meta: OnnxMetadata, opset: int) -> str:
    """Return what tells this export from others."""
    text = repr((meta.digest, meta.target, meta.input_size, opset))
    return hashlib.sha256(text.encode()).hexdigest()


def export_from_config(
    model: nn.Module,
    config: Config,
    *,
    source: OnnxSource,
    batches: Sequence[Any],
    out: str | Path,
    target: str,
    size: tuple[int, int] | None,
    dynamic: bool | None,
    opset: int,
    choices: FileChoices | None = None,
) -> list[Any]:
    """Export the model of a config; see ``taskptq.apis.export_onnx``.

    Args:
        model: The model with its weights, in eval mode.
        config: Its config.
        source: The checkpoint.
        batches: Calibration batches, collated; none exports without data.
        out: As in ``export_onnx``, like all that follow.
        target: Runtime.
        size: Height and width of the images.
        dynamic: Whether they are free; None leaves them free if ``size`` is
            None and the batches have several.
        opset: Version of the operators.
        choices: How the files are written; None takes the defaults.
    """
    choices = choices or FileChoices()
    if size is None and not len(batches):
        raise ValueError(
            'an export without images cannot know their size: give --size '
            'HEIGHT WIDTH, or --num-images of at least 1'
        )
    if choices.end_to_end:
        dynamic = bool(dynamic)
        check_end_to_end(
            model, target=target, dynamic=dynamic, images=len(batches)
        )
    found = sized_batches(model, batches, size=size)
    cut = parts_of(model)
    several = len({cut.image_size(batch) for batch in found}) > 1
    export = partial(
        _export_sized,
        model,
        config,
        found,
        calibrated=len(batches) > 0,
        source=source,
        out=out,
        target=target,
        opset=opset,
        choices=choices,
    )
    if dynamic is not None or not several:
        return export(dynamic=bool(dynamic))
    return _export_free_or_fixed(export, size=cut.image_size(found[0]))


def _export_free_or_fixed(
    export: Callable[..., list[Any]], *, size: tuple[int, int]
) -> list[Any]:
    """Leave the size of the images free, or fix it where it cannot be."""
    from taskptq.export.onnx import OnnxExportError

    log = MMLogger.get_current_instance()
    try:
        reports = export(dynamic=True)
    except (OnnxFileError, OnnxExportError) as error:
        height, width = size
        log.warning(
            f'The images come in several sizes, but {error}. This file takes '
            f'{height}x{width}, and no others.'
        )
        return export(dynamic=False)
    log.info(
        'The images come in several sizes, so the file leaves them free; '
        'give --size HEIGHT WIDTH to fix it.'
    )
    return reports


def _export_sized(
    model: nn.Module,
    config: Config,
    batches: Sequence[Mapping[str, Any]],
    *,
    calibrated: bool,
    source: OnnxSource,
    out: str | Path,
    target: str,
    dynamic: bool,
    opset: int,
    choices: FileChoices,
) -> list[Any]:
    """Export with free or fixed sizes; the first batch is the example."""
    data, cut = batches[0], parts_of(model)
    sizes = cut.image_size(data)
    calibration = [
        batch
        for batch in batches
        if calibrated and (dynamic or cut.image_size(batch) == sizes)
    ]
    known = getattr(model, 'dataset_meta', None) or {}
    classes = known.get('classes')
    meta = OnnxMetadata(
        parts=[],
        export='',
        model=type(model).__name__,
        config=config.filename and Path(config.filename).stem,
        target=target,
        input_size=None if dynamic else list(sizes),
        classes=None if classes is None else [str(name) for name in classes],
        **source.facts(),
    )
    reports = export_parts(
        model,
        data,
        out=out,
        meta=meta,
        opset=opset,
        calibration=[] if source.facts()['recipe'] == FLOAT else calibration,
        pipeline=test_pipeline(config),
        choices=choices,
    )
    if calibration:
        reports[0].checks['decisions'] = check_decisions(
            model, calibration, out=out, target=target
        )
    if choices.end_to_end:
        reports[0].checks['end_to_end'] = append_decoding(
            model, calibration, out=out, target=target
        )
    return reports


def sized_batches(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    size: tuple[int, int] | None,
) -> list[dict[str, Any]]:
    """Return batches as the network gets them.

    Args:
        model: The model.
        batches: Collated batches; none takes noise of ``size``.
        size: Height and width; None leaves the batches as they are.
    """
    found = [preprocessed(model, batch) for batch in batches]
    if size is None:
        return found
    return [at_size(batch, size) for batch in found] or [random_batch(size)]


def test_pipeline(config: Config) -> Sequence[Mapping[str, Any]] | None:
    """Return the transforms of a config's test set, if they are named."""
    loader = config.get('test_dataloader') or config.get('val_dataloader')
    if not isinstance(loader, Mapping):
        return None
    leaf = leaf_datasets(loader['dataset'])[0]
    return leaf.get('pipeline') if isinstance(leaf, Mapping) else None
