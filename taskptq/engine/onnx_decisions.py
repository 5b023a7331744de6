"""Compare what a host decides from an exported file and from its network.

A file is written from one run of the network. What the host's code computed
there with Python numbers stays as it was; the outputs of another image show
it, and so do the boxes, masks or lanes that the host makes of them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from taskptq.analysis.page.agreement import Agreement, compare
from taskptq.analysis.page.predictions import Prediction, read_prediction
from taskptq.engine.network_parts import parts_of
from taskptq.engine.onnx_metadata import open_parts, part_path
from taskptq.engine.prediction_agreement import LEAST_SCORE, UNDECODED
from taskptq.export.openvino_session import ONNXRUNTIME
from taskptq.export.runtime import OnnxFileError

__all__ = ['busiest_images', 'check_decisions', 'joined']

# Share of the decisions that rounding does not change.
MOST_CHANGED = 0.5
# Fewer objects than that may come and go by chance.
FEWEST_OBJECTS = 5
SIMULATION = 'simulation'
# Images that the two are chosen from.
MOST_IMAGES = 8
# Share of the other image's rows that stay, so that padding masks differ.
KEPT_ROWS = (3, 4)


def check_decisions(
    model: nn.Module,
    batches: Sequence[Mapping[str, Any]],
    *,
    out: str | Path,
    target: str,
) -> str:
    """Compare decisions on an example and on an image of other content.

    The example runs alone, then both in one batch, where the other one is
    smaller and padded.

    Args:
        model: The model that was exported; a copy of it runs.
        batches: Preprocessed batches; the first is the example.
        out: File of the export's main part.
        target: Runtime that it is for; others than ONNX Runtime are
            simulated.

    Returns:
        How they agree, in words.

    Raises:
        OnnxFileError: If most decisions of the other image differ, and those
            of the example do not; the files are removed.
    """
    try:
        images = busiest_images(model, batches)
        runs = [images[0], joined(images)] if len(images) > 1 else images
        expected = list(_predictions(model, runs))
    except UNDECODED as error:
        return f'not compared, since the host fails ({type(error).__name__})'
    runtime = ONNXRUNTIME if target == ONNXRUNTIME else SIMULATION
    meta, sessions = open_parts(out, runtime=runtime)
    host = copy.deepcopy(model)
    parts_of(host).install(sessions)
    found = list(_predictions(host, runs))
    agreements = [
        compare(first, second, score=LEAST_SCORE, size=size)
        for (first, size), (second, _) in zip(expected, found, strict=True)
    ]
    try:
        refuse_others(agreements, out=out)
    except OnnxFileError:
        for part in meta.parts:
            part_path(out, part).unlink()
        raise
    words = [one.sentence() for one in agreements[1:] or agreements]
    return '; '.join(f'image {i}: {text}' for i, text in enumerate(words, 1))


def refuse_others(agreements: Sequence[Agreement], *, out: str | Path) -> None:
    """Refuse a file that decides as its network on the example alone.

    Args:
        agreements: Of the example alone, then of a batch of several images.
        out: The file.

    Raises:
        OnnxFileError: If it does.
    """
    usual = agreements[0]
    for number, other in enumerate(agreements[1:], start=1):
        changed = other.score > max(MOST_CHANGED, 2 * usual.score)
        if changed and (other.changed is not None or _objects(other)):
            raise OnnxFileError(
                f'{out} decides otherwise than its network on image {number} '
                f'of a batch ({other.sentence()}), but not on the image that '
                f'it was traced with ({usual.sentence()}): the network '
                'computes with values of an image outside of its tensors; '
                'register NetworkParts that leave this to the host'
            )


def _objects(agreement: Agreement) -> bool:
    """Whether there are enough objects to judge."""
    count = len(agreement.matched_boxes) + len(agreement.matched_lines)
    for names in ('lost_boxes', 'new_boxes', 'lost_lines', 'new_lines'):
        count += len(getattr(agreement, names))
    return count >= FEWEST_OBJECTS


def busiest_images(
    model: nn.Module, batches: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return an image of the first batch and one of other content.

    Of the first few images, those where the model finds most objects. The
    other one is not of the first batch, which the file was traced with,
    unless there is no further.

    Args:
        model: The model.
        batches: Preprocessed batches.

    Returns:
        One or two batches of one image.
    """
    traced = list(islice(_single(batches[:1]), MOST_IMAGES))
    room = MOST_IMAGES - len(traced)
    later = list(islice(_single(batches[1:]), max(room, 1)))
    example = _busiest(model, traced)
    later, traced = (
        [x for x in group if not _equal(x['inputs'][0], example['inputs'][0])]
        for group in (later, traced)
    )
    others = later or traced
    return [example, _busiest(model, others)] if others else [example]


def _busiest(
    model: nn.Module, images: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Return the image with most objects; the first of equals."""
    if len(images) == 1:
        return images[0]
    found = [prediction for prediction, _ in _predictions(model, images)]
    counts = [len(one.boxes) + len(one.lines) for one in found]
    return images[counts.index(max(counts))]


def _single(
    batches: Sequence[Mapping[str, Any]],
) -> Iterator[dict[str, Any]]:
    """Yield batches of one image each, but for repeated images."""
    for batch in batches:
        previous = None
        for i, sample in enumerate(batch['data_samples']):
            inputs = batch['inputs'][i : i + 1]
            if previous is None or not _equal(inputs[0], previous):
                yield {**batch, 'inputs': inputs, 'data_samples': [sample]}
            previous = inputs[0]


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def joined(images: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Put two images into one batch, as a host's preprocessor does.

    Args:
        images: Batches of one image each. Of tensors, the second one loses
            its lowest rows, and all are padded with zeros to one size.
    """
    samples = [
        copy.deepcopy(s) for image in images for s in image['data_samples']
    ]
    inputs = [image['inputs'] for image in images]
    if not all(isinstance(x, Tensor) for x in inputs):
        every = [x for image in inputs for x in image]
        return {**images[0], 'inputs': every, 'data_samples': samples}
    rows = max(1, inputs[1].shape[-2] * KEPT_ROWS[0] // KEPT_ROWS[1])
    height = max(x.shape[-2] for x in inputs)
    width = max(x.shape[-1] for x in inputs)
    inputs[1] = inputs[1][..., :rows, :]
    whole = samples[1].metainfo.get('img_shape', inputs[1].shape[-2:])
    samples[1].set_metainfo({'img_shape': (min(whole[0], rows), whole[1])})
    for sample in samples:
        size = (height, width)
        sample.set_metainfo({'batch_input_shape': size, 'pad_shape': size})
    padded = [
        functional.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2]))
        for x in inputs
    ]
    return {**images[0], 'inputs': torch.cat(padded), 'data_samples': samples}


@torch.no_grad()
def _predictions(
    model: nn.Module, batches: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[Prediction, tuple[int, int]]]:
    """Yield what a model finds in each image, and the image's size."""
    for data in batches:
        samples = model(**copy.deepcopy(dict(data)), mode='predict')
        for sample in samples:
            height, width = getattr(sample, 'ori_shape', (1, 1))[:2]
            found = read_prediction(sample, score=LEAST_SCORE / 2)
            yield found, (int(height), int(width))
