"""The host's decoding and NMS of one image as a network of its own.

What a one-stage detector makes of its raw outputs is Python around tensors:
it is traced as it stands, but for the few calls that a trace would freeze or
lose.
"""

from __future__ import annotations

import builtins
import copy
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from taskptq.engine.dense_parts import in_order
from taskptq.engine.exportable import exportable_calls

__all__ = ['OUTPUTS', 'BoxDecoder', 'found_boxes']

# Of one image: corners (N, 4), scores (N,), classes (N,).
OUTPUTS = ('boxes', 'scores', 'labels')


class BoxDecoder(nn.Module):
    """Raw outputs of one image -> boxes in its frame, best first.

    Args:
        head: ``bbox_head`` of a one-stage detector.
        names: Names of the raw outputs, in order.
        size: Height and width of the frame.
    """

    def __init__(
        self, head: nn.Module, *, names: Sequence[str], size: tuple[int, int]
    ) -> None:
        super().__init__()
        # Without its weights: a list hides a module from its owner.
        self._head = [head]
        self._names = tuple(names)
        self._meta = {
            'img_shape': size,
            'ori_shape': size,
            'pad_shape': size,
            'batch_input_shape': size,
            'scale_factor': (1.0, 1.0),
        }

    def forward(self, *outputs: Tensor) -> tuple[Tensor, ...]:
        """Decode; outputs as :data:`OUTPUTS` has them."""
        (head,) = self._head
        raw = dict(zip(self._names, outputs, strict=True))
        with decodable() if torch.onnx.is_in_onnx_export() else ExitStack():
            (found,) = head.predict_by_feat(
                *in_order(head, raw),
                batch_img_metas=[copy.deepcopy(self._meta)],
                rescale=False,
            )
        return found_boxes(found)


def found_boxes(found: Any) -> tuple[Tensor, ...]:
    """Return the boxes of a host's InstanceData.

    Raises:
        ValueError: If it holds more, such as masks.
    """
    if set(found.keys()) != {'bboxes', 'scores', 'labels'}:
        raise ValueError(
            f'the predictions hold {", ".join(sorted(found.keys()))}, and '
            'end_to_end writes boxes, scores and labels alone: leave it out'
        )
    boxes = getattr(found.bboxes, 'tensor', found.bboxes)
    return boxes, found.scores, found.labels


@contextmanager
def decodable() -> Iterator[None]:
    """Replace what a trace of a decoding would freeze or lose."""
    with ExitStack() as stack:
        # Hosts' branches for exports call code that is no more.
        stack.enter_context(
            mock.patch('torch.onnx.is_in_onnx_export', return_value=False)
        )
        for name in ('min', 'max'):
            traced = traced_extreme(getattr(builtins, name), name)
            stack.enter_context(mock.patch.object(builtins, name, traced))
        stack.enter_context(exportable_calls())
        stack.enter_context(WholeClamps())
        stack.enter_context(traced_nms())
        yield


def traced_extreme(plain: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return ``min`` or ``max`` that leaves a count of boxes a tensor."""
    choose = getattr(torch, f'{name}imum')

    def extreme(*values: Any, **options: Any) -> Any:
        if len(values) != 2 or not any(isinstance(v, Tensor) for v in values):
            return plain(*values, **options)
        return choose(*(torch.as_tensor(value) for value in values))

    return extreme


class WholeClamps(TorchFunctionMode):
    """Clamp columns of a tensor as a change of the whole tensor.

    A trace follows a tensor that is changed in place, but not one of which a
    view is changed.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Replace ``clamp_`` of columns; pass on all other calls."""
        options = dict(kwargs or {})
        if func is not Tensor.clamp_ or args[0]._base is None:
            return func(*args, **options)
        view, base = args[0], args[0]._base
        columns = columns_of(view, base)
        if columns is None:
            return func(*args, **options)
        clamped = torch.clamp(base, *args[1:], **options)
        base.copy_(torch.where(columns, clamped, base))
        return view


def columns_of(view: Tensor, base: Tensor) -> Tensor | None:
    """Return which columns of a tensor a view shows, the same of all rows.

    Args:
        view: View of ``base``.
        base: (..., C).

    Returns:
        (C,), bool; None if it does not show the same of all rows.
    """
    from taskptq.export.onnx.emission import untraced

    with untraced():
        shown = torch.zeros(base.shape, dtype=torch.bool)
        offset = view.storage_offset() - base.storage_offset()
        if not base.is_contiguous() or not base.numel():
            return None
        shown.as_strided(view.shape, view.stride(), offset).fill_(True)
        rows = shown.flatten(0, -2)
        return rows[0].clone() if bool((rows == rows[0]).all()) else None


@contextmanager
def traced_nms() -> Iterator[None]:
    """Let mmcv's NMS leave NonMaxSuppression in a graph."""
    # mmcv.ops.nms is the function; its module has the same name.
    nms = importlib.import_module('mmcv.ops.nms')

    class TracedNMS(nms.NMSop):  # type: ignore[misc, name-defined]
        """NMS with a form in ONNX; the values are mmcv's."""

        @staticmethod
        def symbolic(
            g: Any,
            boxes: Any,
            scores: Any,
            iou_threshold: float,
            offset: int,
            score_threshold: float,
            max_num: int,
        ) -> Any:
            if offset:
                raise ValueError('NMS with offset=1 has no form in ONNX')
            return nms_symbolic(
                g,
                boxes,
                scores,
                iou_threshold=iou_threshold,
                score_threshold=score_threshold,
                max_num=max_num,
            )

    with mock.patch.object(nms, 'NMSop', TracedNMS):
        yield


def nms_symbolic(
    g: Any,
    boxes: Any,
    scores: Any,
    *,
    iou_threshold: float,
    score_threshold: float,
    max_num: int,
) -> Any:
    """Write greedy NMS of one class, which returns indices, best first.

    Args:
        g: The exporter's graph.
        boxes: (N, 4), corners.
        scores: (N,).
        iou_threshold: Boxes that overlap more are dropped.
        score_threshold: Least score; 0 keeps all.
        max_num: Most boxes; -1 keeps all.
    """

    def constant(value: Any, dtype: torch.dtype) -> Any:
        return g.op('Constant', value_t=torch.tensor(value, dtype=dtype))

    most = max_num if max_num > 0 else torch.iinfo(torch.int64).max
    inputs = [
        g.op('Unsqueeze', boxes, constant([0], torch.int64)),
        g.op('Unsqueeze', scores, constant([0, 1], torch.int64)),
        constant([most], torch.int64),
        constant([iou_threshold], torch.float32),
    ]
    if score_threshold > 0:
        inputs.append(constant([score_threshold], torch.float32))
    chosen = g.op('NonMaxSuppression', *inputs)
    # Rows of image, class and box.
    column = g.op('Gather', chosen, constant([2], torch.int64), axis_i=1)
    return g.op('Squeeze', column, constant([1], torch.int64))
