"""Network part of the DETR family: images and padding mask -> raw boxes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from taskptq.engine.dense_parts import (
    in_order,
    named_outputs,
    pass_on,
)
from taskptq.engine.network_parts import (
    NetworkParts,
)
from taskptq.engine.raw_outputs import (
    MAIN,
    Part,
    Run,
    image_axes,
    make_part,
)
from taskptq.registry import NETWORK_PARTS

__all__ = ['TransformerParts', 'padding_mask']


def padding_mask(images: Tensor, samples: Sequence[Any]) -> Tensor:
    """Return where a batch is padding, (N, H, W): 1 there, 0 in the images.

    Args:
        images: (N, 3, H, W).
        samples: Data samples with ``img_shape``.
    """
    mask = images.new_ones((len(images), *images.shape[-2:]))
    for row, sample in zip(mask, samples, strict=True):
        height, width = sample.img_shape[:2]
        row[:height, :width] = 0
    return mask


class GivenMask(TorchFunctionMode):
    """Let the host's code take a given padding mask for the one it makes.

    The host fills a tensor of ones by image sizes that are Python numbers,
    which a trace would freeze. Here ``new_ones`` of three dimensions returns
    the given mask, and filling it does nothing.

    Args:
        mask: (N, H, W).
    """

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Answer the two calls that make a mask; pass on all others."""
        if func is Tensor.new_ones and _is_batch_shape(args[1:]):
            return self.mask
        if func is Tensor.__setitem__ and args[0] is self.mask:
            return None
        return func(*args, **(kwargs or {}))


def _is_batch_shape(args: tuple[Any, ...]) -> bool:
    shape = args[0] if len(args) == 1 else args
    return isinstance(shape, (tuple, list)) and len(shape) == 3


@contextmanager
def attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute of an instance for a while."""
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name)


@NETWORK_PARTS.register_module(
    name='mmdet.models.detectors.base_detr.DetectionTransformer'
)
class TransformerParts(NetworkParts):
    """DETR and its kind: all but the choice of the best queries."""

    def _check(self) -> None:
        from mmdet.models.detectors import DetectionTransformer

        self.refuse_overridden(
            DetectionTransformer, 'predict', 'add_pred_to_datasample'
        )

    def parts(
        self, data: Mapping[str, Any], *, dynamic: bool = False
    ) -> list[Part]:
        """Return the detector up to what ``predict_by_feat`` takes."""
        self._check()
        mask = padding_mask(data['inputs'], data['data_samples'])
        free = image_axes(dynamic=dynamic)
        return [
            make_part(
                MAIN,
                self._raw_boxes,
                modules=self._modules(),
                inputs={'images': data['inputs'], 'padding': mask},
                axes={
                    'images': free,
                    'padding': image_axes(dynamic=dynamic, spatial=1),
                },
            )
        ]

    def _modules(self) -> dict[str, Any]:
        """Return everything with weights, and those of the model itself."""
        return {
            **dict(self.model.named_parameters(recurse=False)),
            **{
                name: child
                for name, child in self.model.named_children()
                if name != 'data_preprocessor'
            },
        }

    def _raw_boxes(self, images: Tensor, mask: Tensor) -> dict[str, Any]:
        """Run the model; return what its head would decode."""
        model, head = self.model, self.model.bbox_head
        # No image fills its frame, so that the host makes a mask.
        sample = SimpleNamespace(
            batch_input_shape=tuple(images.shape[-2:]),
            img_shape=(0, 0),
            metainfo={},
        )
        samples = [sample] * len(images)
        found: list[tuple[Any, ...]] = []

        def keep(*outputs: Any, **kwargs: Any) -> list[Any]:
            found.append(outputs)
            return []

        feats = model.extract_feat(images)
        inner = type(model).pre_transformer

        def pre_transformer(*args: Any, **kwargs: Any) -> Any:
            # Else the host leaves the mask out of an export.
            exports = mock.patch.object(
                torch.onnx, 'is_in_onnx_export', return_value=False
            )
            with exports, GivenMask(mask):
                return inner(model, *args, **kwargs)

        with attribute(model, 'pre_transformer', pre_transformer):
            inputs = model.forward_transformer(feats, samples)
        with attribute(head, 'predict_by_feat', keep):
            head.predict(**inputs, batch_data_samples=samples, rescale=False)
        return named_outputs(head, found[0])

    def install(self, runs: Mapping[str, Run]) -> None:
        """Compute the queries' outputs; choosing boxes stays the host's."""
        self._check()
        self.check_names(runs, [MAIN])
        model, head = self.model, self.model.bbox_head

        def forward_transformer(
            images: Tensor, batch_data_samples: Sequence[Any]
        ) -> dict[str, Any]:
            mask = padding_mask(images, batch_data_samples)
            return {'outputs': in_order(head, runs[MAIN](images, mask))}

        def predict(
            outputs: tuple[Any, ...],
            batch_data_samples: Sequence[Any],
            rescale: bool = True,
        ) -> Any:
            metas = [sample.metainfo for sample in batch_data_samples]
            return head.predict_by_feat(
                *outputs, batch_img_metas=metas, rescale=rescale
            )

        model.extract_feat = pass_on
        model.forward_transformer = forward_transformer
        head.predict = predict
