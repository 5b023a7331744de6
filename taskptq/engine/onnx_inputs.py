"""Batches of images as the parts of a network get them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.nn import functional

from taskptq.engine.network_parts import parts_of
from taskptq.engine.raw_outputs import Run

__all__ = ['at_size', 'preprocessed', 'random_batch', 'recorded_inputs']

# Images in an example batch: a trace may take a batch of one for all.
SPARE = 2


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
            rows = {len(tensor) for tensor in tensors}
            if len(tensors[0]):
                # Of several numbers, one may be a multiple of another.
                most = limit if len(rows) == 1 else max(rows)
                kept = tuple(t[:most].clone() for t in tensors)
                found[name].append(kept)
            return runs[name](*tensors)

        return run

    host = copy.deepcopy(model)
    parts_of(host).install({name: recording(name) for name in runs})
    with torch.no_grad():
        for data in batches:
            host(**copy.deepcopy(dict(data)), mode='predict')
    return found
