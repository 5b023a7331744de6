"""Files that return boxes: decoding and NMS inside of the graph."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.core.setting_error import refuse
from taskptq.engine.box_decoder import OUTPUTS, BoxDecoder
from taskptq.engine.dense_parts import DenseDetectorParts
from taskptq.engine.network_parts import parts_of
from taskptq.engine.onnx_decisions import busiest_images, joined
from taskptq.engine.onnx_metadata import PREFIX, open_parts
from taskptq.engine.raw_outputs import BATCH, MAIN, Run
from taskptq.export.openvino_session import ONNXRUNTIME
from taskptq.export.runtime import OnnxFileError, Session

__all__ = [
    'append_decoding',
    'check_end_to_end',
    'install_boxes',
    'returns_boxes',
]

BOXES = 'boxes'
# Boxes of file and host are the same within so many pixels and as much score.
PIXELS, SCORE = 0.5, 0.01
# Share of the boxes that may differ, and number among a few: rounding moves a
# box across a threshold now and then.
MOST_OTHER = 0.05
FEW = 10
SIMULATION = 'simulation'


def check_end_to_end(
    model: nn.Module, *, target: str, dynamic: bool | None, images: int
) -> None:
    """Refuse what cannot have its decoding in the file, before the work.

    Args:
        model: The model.
        target: Runtime of the file.
        dynamic: Whether the size of the images is free.
        images: Number of calibration batches.

    Raises:
        SettingError: If it cannot.
    """
    problem = ''
    if type(parts_of(model)) is not DenseDetectorParts:
        problem = (
            f'{type(model).__name__} is no one-stage detector whose boxes '
            'come from one head: leave it out, the host decodes'
        )
    elif target == 'tensorrt':
        problem = 'no file for tensorrt was ever run: leave it out'
    elif dynamic:
        problem = 'the anchors are those of one image size: give --size'
    elif not images:
        problem = (
            'two images must show that the file decodes as the host: give '
            '--num-images of at least 2'
        )
    if problem:
        raise refuse('end_to_end', True, problem)


@torch.no_grad()
def append_decoding(
    model: nn.Module,
    batches: Sequence[Mapping[str, Any]],
    *,
    out: str | Path,
    target: str,
) -> str:
    """Let a file of raw outputs return boxes instead, in its frame.

    The host's own decoding is traced with one image; the file is kept only
    if it finds the host's boxes in others as well: in one of other content,
    and in one that is padded.

    Args:
        model: The model that was exported.
        batches: Preprocessed batches.
        out: The file; written anew.
        target: Runtime that it is for.

    Returns:
        How many boxes are the same, in words.

    Raises:
        OnnxFileError: If it decodes otherwise than the host; the file is
            removed.
    """
    runtime = ONNXRUNTIME if target == ONNXRUNTIME else SIMULATION
    images = busiest_images(model, batches)
    runs = [*images, joined(images)] if len(images) > 1 else images
    _, sessions = open_parts(out, runtime=runtime)
    host = copy.deepcopy(model)
    parts_of(host).install(sessions)
    expected = list(predicted(host, runs))
    try:
        if len(images) < 2 or not len(expected[0][0]):
            raise OnnxFileError(
                f'{out} cannot decode: it takes two images of other content, '
                'and boxes in the first: calibrate with more images, or '
                'leave end_to_end out'
            )
        write_decoding(model, sessions[MAIN], images[0]['inputs'], out=out)
        meta, sessions = open_parts(out, runtime=runtime)
        install_boxes(host, sessions[MAIN], decoding=meta.decoding or {})
        found = list(predicted(host, runs))
        sessions[MAIN](torch.zeros_like(images[0]['inputs'][:1]))
        return compare(expected, found, out=out)
    except ValueError:
        Path(out).unlink()
        raise


def write_decoding(
    model: nn.Module, run: Session, images: Tensor, *, out: str | Path
) -> None:
    """Trace the host's decoding and append it to a file.

    Args:
        model: The host.
        run: The file, which returns raw outputs.
        images: Image to trace with, (1, 3, H, W).
        out: The file; written anew.
    """
    import onnx

    from taskptq.export.onnx.export import TRACED_OPSET
    from taskptq.export.onnx.joining import append_graph
    from taskptq.export.onnx.tracing import trace

    raw = run(images[:1])
    height, width = images.shape[-2:]
    head = copy.deepcopy(model.bbox_head).eval()
    decoder = BoxDecoder(head, names=list(raw), size=(int(height), int(width)))
    facts = {'kind': BOXES, 'clip': clips(head, raw)}
    decoding = trace(
        decoder.eval(),
        tuple(raw.values()),
        input_names=list(raw),
        output_names=OUTPUTS,
        dynamic_axes={name: {0: 'found'} for name in OUTPUTS},
        opset=TRACED_OPSET,
    )
    whole = append_graph(onnx.load(str(out)), decoding, outputs=OUTPUTS)
    for value in (*whole.graph.input, *whole.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == BATCH:
                dim.dim_value = 1
    for entry in whole.metadata_props:
        if entry.key == f'{PREFIX}decoding':
            entry.value = json.dumps(facts)
    onnx.save(whole, str(out))


def clips(head: nn.Module, raw: Mapping[str, Tensor]) -> bool:
    """Whether boxes end with the image, which may be smaller than its frame.

    Args:
        head: ``bbox_head`` of the detector.
        raw: Raw outputs of an image with boxes.
    """
    decoder = BoxDecoder(head, names=list(raw), size=(1, 1))
    boxes = decoder(*raw.values())[0]
    return bool((boxes <= 1).all())


def returns_boxes(decoding: Mapping[str, Any] | None) -> bool:
    """Whether a file that is decoded like this returns boxes."""
    return decoding is not None and decoding.get('kind') == BOXES


def install_boxes(
    model: nn.Module, run: Run, *, decoding: Mapping[str, Any]
) -> None:
    """Let a file that returns boxes predict in a host's place.

    Args:
        model: Detector; changed in place.
        run: The file, which takes one image.
        decoding: How the file says that it is decoded.
    """
    from mmengine.structures import InstanceData

    def predict(images: Tensor, samples: Any, rescale: bool = True) -> Any:
        found = []
        for i, sample in enumerate(samples):
            one = run(images[i : i + 1])
            boxes = one['boxes']
            if decoding.get('clip'):
                one = without_padding(one, sample.metainfo['img_shape'])
                boxes = one['boxes']
            if rescale:
                scale = sample.metainfo['scale_factor'][:2]
                boxes = boxes / boxes.new_tensor([*scale, *scale])
            found.append(
                InstanceData(
                    bboxes=boxes, scores=one['scores'], labels=one['labels']
                )
            )
        return model.add_pred_to_datasample(samples, found)

    model.predict = predict


def without_padding(
    found: Mapping[str, Tensor], shape: Sequence[int]
) -> dict[str, Tensor]:
    """End boxes with the image: a file knows its frame alone.

    Args:
        found: Outputs of the file.
        shape: Height and width of the image in the frame.
    """
    boxes = found['boxes']
    height, width = shape[:2]
    most = boxes.new_tensor([width, height, width, height])
    boxes = boxes.clamp(min=0).minimum(most)
    kept = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    return {
        name: tensor[kept]
        for name, tensor in {**found, 'boxes': boxes}.items()
    }


Boxes = tuple[Tensor, Tensor, Tensor]


def predicted(
    model: nn.Module, batches: Sequence[Mapping[str, Any]]
) -> Iterator[Boxes]:
    """Yield boxes, scores and labels of each image of preprocessed batches."""
    for data in batches:
        for sample in model(**copy.deepcopy(dict(data)), mode='predict'):
            one = sample.pred_instances
            boxes = getattr(one.bboxes, 'tensor', one.bboxes)
            yield boxes, one.scores, one.labels


def compare(
    expected: Sequence[Boxes], found: Sequence[Boxes], *, out: str | Path
) -> str:
    """Compare the boxes of the host with those of a file, by image.

    Raises:
        OnnxFileError: If too many differ.
    """
    words = []
    for number, (host, file) in enumerate(zip(expected, found, strict=True)):
        same = min(shared(host, file), shared(file, host))
        words.append(f'{same} of {len(host[0])}')
        most = max(len(host[0]), len(file[0]))
        if most - same > int(MOST_OTHER * most) + (most >= FEW):
            raise OnnxFileError(
                f'{out} finds {len(file[0])} boxes in image {number}, the '
                f'host {len(host[0])}, and {same} are the same: its code '
                'computes with values of the traced image outside of its '
                'tensors; leave end_to_end out, and the host decodes'
            )
    return f'{", ".join(words)} boxes are those of the host'


def shared(first: Boxes, second: Boxes) -> int:
    """Return how many boxes of one prediction another one has as well."""
    if not len(first[0]) or not len(second[0]):
        return 0
    apart = (first[0][:, None] - second[0][None]).abs().amax(-1)
    same = apart <= PIXELS
    same &= (first[1][:, None] - second[1][None]).abs() <= SCORE
    same &= first[2][:, None] == second[2][None]
    return int(same.any(1).sum())
