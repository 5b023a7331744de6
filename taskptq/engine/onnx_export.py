"""From a model and a batch of images to the files of an export."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.nn import functional

from taskptq.core.progress import Progress
from taskptq.engine.checkpoint_file import (
    load_float_weights,
    read_checkpoint,
)
from taskptq.engine.datasets import leaf_datasets
from taskptq.engine.network_parts import (
    parts_of,
)
from taskptq.engine.onnx_decode import decodes
from taskptq.engine.onnx_metadata import OnnxMetadata, part_path
from taskptq.engine.onnx_preprocess import preprocessing
from taskptq.engine.raw_outputs import (
    HEIGHT,
    WIDTH,
    Part,
    Run,
)
from taskptq.engine.restore import restore_model
from taskptq.export.runtime import (
    OnnxFileError,
    Session,
    is_onnx_path,
    read_onnx,
)
from taskptq.export.schema import is_quantized

__all__ = [
    'OnnxSource',
    'at_size',
    'export_from_config',
    'export_parts',
    'preprocessed',
    'random_batch',
    'recorded_inputs',
]

FLOAT = 'float'
SPARE = 2  # images in the example batch, so that none is taken for all


def preprocessed(model: nn.Module, batch: Any) -> dict[str, Any]:
    """Return a batch as the model's ``data_preprocessor`` makes it.

    A single image is doubled: a trace of a batch of one may take it for all.

    Args:
        model: Model with a data preprocessor.
        batch: Collated batch.
    """
    with torch.no_grad():
        data = dict(model.data_preprocessor(copy.deepcopy(batch), False))
    images, samples = data['inputs'], list(data['data_samples'] or [])
    if isinstance(images, Tensor) and len(images) < SPARE:
        data['inputs'] = images.repeat(SPARE, 1, 1, 1)
        samples = [copy.deepcopy(samples[0]) for _ in range(SPARE)]
    return {**data, 'data_samples': samples}


def random_batch(size: tuple[int, int]) -> dict[str, Any]:
    """Return a preprocessed batch of noise, for an export without data.

    Args:
        size: Height and width.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(SPARE, 3, *size, generator=generator)
    samples = [BaseDataElement(metainfo=_frame(size)) for _ in range(SPARE)]
    return {'inputs': images, 'data_samples': samples}


def at_size(data: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Resize a preprocessed batch to another input size.

    Args:
        data: See :func:`preprocessed`.
        size: Height and width.
    """
    images = data['inputs']
    if not isinstance(images, Tensor):
        raise ValueError(
            f'size={size}: the model fixes the size of its images; leave it '
            'out'
        )
    if tuple(images.shape[-2:]) == size:
        return dict(data)
    samples = [copy.deepcopy(sample) for sample in data['data_samples']]
    for sample in samples:
        sample.set_metainfo(_frame(size))
    resized = functional.interpolate(
        images, size=size, mode='bilinear', align_corners=False
    )
    return {**data, 'inputs': resized, 'data_samples': samples}


def _frame(size: tuple[int, int]) -> dict[str, Any]:
    """Return the metainfo of an image that fills its frame."""
    return {
        'img_shape': size,
        'ori_shape': size,
        'pad_shape': size,
        'batch_input_shape': size,
        'scale_factor': (1.0, 1.0),
    }


def recorded_inputs(
    model: nn.Module,
    batches: Sequence[Mapping[str, Any]],
    runs: Mapping[str, Run],
    *,
    limit: int = 64,
) -> dict[str, list[tuple[Tensor, ...]]]:
    """Return what each part is given while the host predicts.

    Args:
        model: Model; a copy of it runs.
        batches: Preprocessed batches.
        runs: A function for each part.
        limit: Rows that are kept of an input of more rows, such as RoIs.
    """
    found: dict[str, list[tuple[Tensor, ...]]] = {name: [] for name in runs}

    def recording(name: str) -> Run:
        def run(*tensors: Tensor) -> Mapping[str, Tensor]:
            if len(tensors[0]):
                kept = tuple(t[:limit].clone() for t in tensors)
                found[name].append(kept)
            return runs[name](*tensors)

        return run

    host = copy.deepcopy(model)
    parts_of(host).install({name: recording(name) for name in runs})
    with torch.no_grad():
        for data in batches:
            host(**copy.deepcopy(dict(data)), mode='predict')
    return found


def export_parts(
    model: nn.Module,
    data: Mapping[str, Any],
    *,
    out: str | Path,
    meta: OnnxMetadata,
    opset: int,
    calibration: Sequence[Mapping[str, Any]] = (),
    pipeline: Sequence[Mapping[str, Any]] | None = None,
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

    Returns:
        The report of each file.

    Raises:
        ValueError: If the model has no known network part, a layer has no
            form in ONNX, or the size of the images cannot be free.
    """
    from taskptq.export.onnx import export_onnx

    dynamic = meta.input_size is None
    cut = parts_of(model)
    parts = cut.parts(data, dynamic=dynamic)
    runs = {part.name: part.network.named_outputs for part in parts}
    given = recorded_inputs(model, calibration, runs) if calibration else {}
    decoding = cut.decoding()
    if decoding is not None and not decodes(decoding, parts[0].output_names):
        decoding = None
    meta = replace(
        meta,
        parts=[part.name for part in parts],
        preprocessing=preprocessing(model, pipeline),
        decoding=decoding,
        export=_digest(meta, opset),
    )
    reports = []
    with Progress('export part', total=len(parts), parts=len(parts)) as shown:
        for index, part in enumerate(parts):
            shown.start_part(index, part.name or 'model')
            path = part_path(out, part.name)
            reports.append(
                export_onnx(
                    part.network,
                    part.inputs,
                    path,
                    input_names=part.input_names,
                    output_names=part.output_names,
                    dynamic_axes=part.dynamic_axes,
                    target=meta.target,
                    opset=opset,
                    metadata=replace(meta, part=part.name).to_texts(),
                    calibration=given.get(part.name, ()),
                )
            )
            check_free_sizes(part, path)
    return reports


def _digest(meta: OnnxMetadata, opset: int) -> str:
    """Return what tells this export from others."""
    text = repr((meta.digest, meta.target, meta.input_size, opset))
    return hashlib.sha256(text.encode()).hexdigest()


@torch.no_grad()
def check_free_sizes(part: Part, path: Path) -> None:
    """Run a file with each free size changed, as the network is run.

    Raises:
        OnnxFileError: If a size was frozen while the network was traced.
    """
    session = Session(read_onnx(path))
    for label in sorted(set(_labels(part))):
        inputs = part.longer(label)
        expected = part.network.named_outputs(*inputs)
        problem = ''
        try:
            found = session(*inputs)
        except OnnxFileError as error:
            problem = str(error)
        else:
            wrong = [
                name
                for name, tensor in expected.items()
                if found[name].shape != tensor.shape
                or not _agree(found[name], tensor)
            ]
            if wrong:
                problem = f'{path}: {wrong[0]} differs from the network'
        if problem:
            raise OnnxFileError(
                f'the {label} of {part.name} cannot be free, because its code '
                f'computes with it outside of the graph ({problem}): '
                f'{_way_out(label)}'
            )


def _way_out(label: str) -> str:
    if label in (HEIGHT, WIDTH):
        return 'export with a fixed --size'
    return 'take sizes from tensor.shape in the model, not from len()'


def _labels(part: Part) -> Iterator[str]:
    for name in part.input_names:
        yield from part.dynamic_axes.get(name, {}).values()


def _agree(found: Tensor, expected: Tensor) -> bool:
    """Whether two outputs are the same computation.

    Ties round differently in two runtimes, and errors of quantized networks
    cascade; a frozen size gives something else altogether.
    """
    if not expected.is_floating_point():
        return True
    noise = float((found - expected).square().mean())
    signal = float(expected.square().mean())
    return noise <= 0.1 * signal + 1e-9


@dataclass(frozen=True, kw_only=True)
class OnnxSource:
    """A checkpoint to export.

    Args:
        path: The file.
        content: Its content, checked.
    """

    path: Path
    content: Mapping[str, Any]

    @classmethod
    def read(
        cls, path: Path, *, float_model: bool, trust_checkpoint: bool = False
    ) -> OnnxSource:
        """Read a checkpoint of the kind that is asked for.

        Raises:
            ValueError: If it is of the other kind; see also
                ``read_checkpoint``.
        """
        if is_onnx_path(path):
            raise ValueError(f'{path} is an exported file already')
        content = read_checkpoint(path, trust_checkpoint=trust_checkpoint)
        if is_quantized(content) and float_model:
            raise ValueError(
                f'{path} is quantized: export it without --float, or give '
                'the float checkpoint'
            )
        if not is_quantized(content) and not float_model:
            raise ValueError(
                f'{path} is a float checkpoint: quantize it first (taskptq '
                'quantize), or export the float model with --float'
            )
        return cls(path=path, content=content)

    def load_into(self, model: nn.Module) -> None:
        """Give a built model the file's structure and weights."""
        if is_quantized(self.content):
            restore_model(self.content, model)
        else:
            load_float_weights(model, self.content, path=self.path)

    def facts(self) -> dict[str, Any]:
        """Return recipe and digest, as the metadata of an export has them."""
        if is_quantized(self.content):
            meta = self.content['meta']
            return {
                'recipe': meta.get('recipe'),
                'digest': str(self.content['digest']),
            }
        digest = hashlib.sha256(self.path.read_bytes()).hexdigest()
        return {'recipe': FLOAT, 'digest': digest}


def export_from_config(
    model: nn.Module,
    config: Config,
    *,
    source: OnnxSource,
    batches: Sequence[Any],
    out: str | Path,
    target: str,
    size: tuple[int, int] | None,
    dynamic: bool,
    opset: int,
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
        dynamic: Whether they are free.
        opset: Version of the operators.
    """
    if size is None and not len(batches):
        raise ValueError(
            'an export without images cannot know their size: give --size '
            'HEIGHT WIDTH, or --num-images of at least 1'
        )
    calibration = [preprocessed(model, batch) for batch in batches]
    data = calibration[0] if calibration else random_batch(size)
    if size is not None:
        calibration = [at_size(batch, size) for batch in calibration]
        data = at_size(data, size)
    cut = parts_of(model)
    sizes = cut.image_size(data)
    calibration = [
        batch
        for batch in calibration
        if dynamic or cut.image_size(batch) == sizes
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
    return export_parts(
        model,
        data,
        out=out,
        meta=meta,
        opset=opset,
        calibration=[] if source.facts()['recipe'] == FLOAT else calibration,
        pipeline=test_pipeline(config),
    )


def test_pipeline(config: Config) -> Sequence[Mapping[str, Any]] | None:
    """Return the transforms of a config's test set, if they are named."""
    loader = config.get('test_dataloader') or config.get('val_dataloader')
    if not isinstance(loader, Mapping):
        return None
    leaf = leaf_datasets(loader['dataset'])[0]
    return leaf.get('pipeline') if isinstance(leaf, Mapping) else None
