"""An offset of decoded boxes: x2 and y2 less one, as older code has it.

The offset belongs to the coding a model was trained with; another at
deployment shrinks every box (SysNoise, Wang et al., MLSys 2023). It reaches
box coders, heads that decode by themselves, and otherwise the predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.robustness.touched import Touched, replaced

__all__ = ['box_offset', 'shrink']

# Methods of heads without a coder that return (..., 4) corners.
OWN_DECODERS = ('_bbox_decode',)


def shrink(boxes: Tensor, *, offset: Tensor | float) -> Tensor:
    """Subtract an offset from the lower right corners.

    >>> shrink(torch.tensor([42.0, 24.0, 62.0, 48.0]), offset=1).tolist()
    [42.0, 24.0, 61.0, 47.0]

    Args:
        boxes: (..., 4 k): x1, y1, x2, y2 in pixels.
        offset: Pixels, or (2,) for x and y.

    Returns:
        Shape of ``boxes``.
    """
    corners = boxes.unflatten(-1, (-1, 4))
    return torch.cat(
        [corners[..., :2], corners[..., 2:] - offset], dim=-1
    ).flatten(-2)


def _shrunk(
    decode: Callable[..., Any], *, offset: float, touched: Touched
) -> Callable[..., Any]:
    """Wrap a function that returns boxes, as tensors or box objects."""

    def call(*args: Any, **kwargs: Any) -> Any:
        boxes = decode(*args, **kwargs)
        touched.count += 1
        if isinstance(boxes, Tensor):
            return shrink(boxes, offset=offset)
        boxes.tensor = shrink(boxes.tensor, offset=offset)
        return boxes

    return call


def decoders(model: nn.Module) -> list[tuple[Any, str]]:
    """Return (owner, method) of everything that decodes boxes, each once."""
    found: dict[int, tuple[Any, str]] = {}
    for module in model.modules():
        coder = getattr(module, 'bbox_coder', None)
        if callable(getattr(coder, 'decode', None)):
            found[id(coder)] = (coder, 'decode')
            continue
        for name in OWN_DECODERS:
            if callable(getattr(module, name, None)):
                found[id(module)] = (module, name)
    return list(found.values())


@contextmanager
def box_offset(model: nn.Module, *, offset: float) -> Iterator[Touched]:
    """Shrink the boxes that a model decodes.

    Args:
        model: A detector; other models are left as they are.
        offset: In pixels of the network's input.
    """
    touched = Touched(none='the model predicts no boxes')
    decoded = Touched(none='')
    with ExitStack() as stack:
        for owner, name in decoders(model):
            stack.enter_context(
                replaced(
                    owner,
                    name,
                    _shrunk(
                        getattr(owner, name), offset=offset, touched=decoded
                    ),
                )
            )

        def on_predictions(
            _model: nn.Module, _inputs: Any, samples: Any
        ) -> None:
            # Models like DETR convert boxes within a larger method.
            if not decoded.count:
                touched.count += shrink_predictions(samples, offset=offset)
            touched.count += decoded.count

        handle = model.register_forward_hook(on_predictions)
        stack.callback(handle.remove)
        yield touched


def shrink_predictions(samples: Any, *, offset: float) -> int:
    """Shrink the boxes of predictions, in place.

    Args:
        samples: What a detector returns; other things are left alone.
        offset: In pixels of the input; boxes are in those of the file.

    Returns:
        Number of samples with boxes.
    """
    count = 0
    for sample in samples if isinstance(samples, (list, tuple)) else ():
        found: Any = getattr(sample, 'pred_instances', None)
        boxes = getattr(found, 'bboxes', None)
        if not isinstance(boxes, Tensor):
            continue
        scale = boxes.new_tensor(
            getattr(sample, 'scale_factor', (1.0, 1.0))[:2]
        )
        found.bboxes = shrink(boxes, offset=offset / scale)
        count += 1
    return count
