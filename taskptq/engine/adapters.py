"""Named outputs of a model, for objectives that look beyond one block.

An adapter is registered under the dotted name of its model class and looked up
along the model's MRO, so the adapter of a base class serves all subclasses
without their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from taskptq.engine.grid_outputs import num_points, split_map
from taskptq.registry import ADAPTERS

__all__ = [
    'Adapter',
    'DenseDetectorAdapter',
    'SegmentorAdapter',
    'name_tensors',
]


def name_tensors(
    value: Any, *, prefix: str = ''
) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of nested outputs and skip other leaves.

    Args:
        value: Tensor, or nested sequences and mappings of them.
        prefix: Name of ``value`` itself; parts are joined by dots.
    """
    if isinstance(value, Tensor):
        yield prefix or 'output', value
        return
    if isinstance(value, Mapping):
        items: Any = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        return
    for key, item in items:
        name = f'{prefix}.{key}' if prefix else str(key)
        yield from name_tensors(item, prefix=name)


def uncertainty(probabilities: Tensor) -> Tensor:
    """Return p (1 - p), the Fisher information of a sigmoid's logit."""
    return probabilities * (1 - probabilities)


@ADAPTERS.register_module(name='torch.nn.modules.module.Module')
class Adapter:
    """Default adapter: every output tensor of a raw forward, by position.

    Args:
        model: Model to adapt; ``forward_heads`` also accepts a quantized copy
            of it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def forward_heads(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Run a model up to its heads' outputs, without post-processing.

        Args:
            model: Float or quantized model.
            batch: Collated batch of the dataloader.

        Returns:
            Output tensors by name, e.g. ``'0.2'`` for the third level of the
            first output.
        """
        preprocess = getattr(model, 'data_preprocessor', None)
        if preprocess is None:
            return dict(name_tensors(model(batch)))
        data = preprocess(batch, False)
        if isinstance(data, Mapping):
            outputs = model(**data, mode='tensor')
        elif isinstance(data, (list, tuple)):
            outputs = model(*data, mode='tensor')
        else:
            outputs = model(data, mode='tensor')
        return dict(name_tensors(outputs))

    def foreground_proxy(
        self, heads: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return how much each position of an output matters.

        Args:
            heads: Outputs of ``forward_heads`` of the float model.

        Returns:
            Weights in [0, 1] that broadcast to each output; all ones here.
        """
        return {
            name: torch.ones((), device=head.device)
            for name, head in heads.items()
        }

    def output_weights(self, heads: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return how much a squared error of each output value matters.

        Logits weigh p (1 - p), their Fisher information: errors count where
        the model is undecided. Other outputs weigh as their foreground.

        Args:
            heads: Outputs of ``forward_heads`` of the float model.

        Returns:
            Non-negative weights that broadcast to each output; an output
            without weights doesn't matter.
        """
        kinds: Mapping[str, str] = getattr(self, 'head_kinds', {})
        weights = self.foreground_proxy(heads)
        for name, head in heads.items():
            kind = next(
                (k for form, k in kinds.items() if fnmatchcase(name, form)), ''
            )
            if kind == 'confidence' and head.is_floating_point():
                weights[name] = uncertainty(head.sigmoid())
        return {
            name: weight
            for name, weight in weights.items()
            if heads[name].is_floating_point()
        }

    def decode(
        self, heads: Mapping[str, Tensor], metas: Sequence[Mapping[str, Any]]
    ) -> list[Any]:
        """Turn outputs into predictions, one per image.

        Raises:
            NotImplementedError: If this adapter cannot decode.
        """
        raise NotImplementedError(
            f'{type(self).__name__} cannot decode the outputs of '
            f'{type(self.model).__name__}: register an adapter for its class'
        )


@ADAPTERS.register_module(
    name='mmdet.models.detectors.single_stage.SingleStageDetector'
)
class DenseDetectorAdapter(Adapter):
    """Adapter of one-stage detectors.

    Outputs are named ``'{kind}.{level}'``; kind 0 holds the class scores,
    (N, anchors * classes, H, W), kind 1 the boxes.
    """

    head_kinds: ClassVar[dict[str, str]] = {
        '1.*': 'regression',
        '*': 'confidence',
    }

    def class_probabilities(self, scores: Tensor) -> Tensor:
        """Return the highest foreground probability at each position.

        Args:
            scores: Logits, (N, anchors * classes, H, W).

        Returns:
            Probabilities, (N, 1, H, W).
        """
        head = self.model.bbox_head
        if getattr(head, 'use_sigmoid_cls', True):
            return scores.sigmoid().amax(dim=1, keepdim=True)
        per_anchor = scores.unflatten(1, (-1, int(head.cls_out_channels)))
        # The last class is the background.
        foreground = per_anchor.softmax(dim=2)[:, :, :-1]
        return foreground.flatten(1, 2).amax(dim=1, keepdim=True)

    def foreground_proxy(
        self, heads: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Weight each position of a level by its highest class probability."""
        ones = super().foreground_proxy(heads)
        by_level = {
            name.rpartition('.')[2]: self.class_probabilities(head)
            for name, head in heads.items()
            if name.startswith('0.') and head.dim() == 4
        }
        return {
            name: by_level.get(name.rpartition('.')[2], ones[name])
            for name in heads
        }

    def output_weights(self, heads: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weigh by the score, which an objectness or centerness multiplies.

        With a class probability c and a factor o of the third head, the
        score is s = c o; the Fisher information of a Bernoulli variable s
        is s (1 - c)^2 / (1 - s) for the logit of c, and for that of o
        likewise, summed over the classes.

        Args:
            heads: Outputs of ``forward_heads`` of the float model.
        """
        weights = super().output_weights(heads)
        for name, classes, factor in self._factored(heads):
            c = classes.sigmoid().unflatten(1, (factor.shape[1], -1))
            o = factor.sigmoid().unsqueeze(2)  # N x A x 1 x H x W
            s = (c * o).clamp(max=1 - 1e-6)
            level = name.rpartition('.')[2]
            information = s / (1 - s)
            of_classes = information * (1 - c).square()
            weights[f'0.{level}'] = of_classes.flatten(1, 2)
            weights[name] = (information * (1 - o).square()).sum(dim=2)
            if f'1.{level}' in weights:
                weights[f'1.{level}'] = s.flatten(1, 2).amax(1, keepdim=True)
        return weights

    def _factored(
        self, heads: Mapping[str, Tensor]
    ) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yield (name, class logits, logits of their factor) of levels."""
        head = self.model.bbox_head
        if not getattr(head, 'use_sigmoid_cls', True):
            return
        for name, factor in heads.items():
            classes = heads.get(f'0.{name.rpartition(".")[2]}')
            num = getattr(head, 'cls_out_channels', 0)
            if (
                name.startswith('2.')
                and classes is not None
                and factor.dim() == classes.dim() == 4
                and factor.shape[1] * num == classes.shape[1]
            ):
                yield name, classes, factor

    def box_distributions(
        self, heads: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the distributions of a grid head, points on the last axis.

        Args:
            heads: Outputs, or weights of the same shapes.

        Returns:
            ``'1.{level}'`` (N, anchors, H, W, 4, n + 1); nothing if the
            boxes are regressed directly.
        """
        points = num_points(self.model.bbox_head)
        if points is None:
            return {}
        return {
            name: split_map(head, points=points)
            for name, head in heads.items()
            if name.startswith('1.')
        }

    def decode(
        self, heads: Mapping[str, Tensor], metas: Sequence[Mapping[str, Any]]
    ) -> list[Any]:
        """Return mmdet's InstanceData (boxes in pixels) of each image."""
        kinds: dict[str, list[Tensor]] = {}
        for name, head in heads.items():
            kinds.setdefault(name.partition('.')[0], []).append(head)
        return list(
            self.model.bbox_head.predict_by_feat(
                *kinds.values(),
                batch_img_metas=[dict(meta) for meta in metas],
                rescale=True,
            )
        )


@ADAPTERS.register_module(name='mmseg.models.segmentors.base.BaseSegmentor')
class SegmentorAdapter(Adapter):
    """Adapter of segmentors: one map of logits, (N, classes, H, W).

    There is no foreground, so all positions have the same weight.
    """

    def output_weights(self, heads: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weigh each pixel by how undecided its class is.

        Args:
            heads: Outputs of ``forward_heads`` of the float model.
        """
        return {
            name: uncertainty(
                logits.softmax(dim=1)
                if logits.shape[1] > 1
                else logits.sigmoid()
            )
            for name, logits in heads.items()
        }

    def decode(
        self, heads: Mapping[str, Tensor], metas: Sequence[Mapping[str, Any]]
    ) -> list[Any]:
        """Return the label map of each image, (H, W) at its original size."""
        logits = next(iter(heads.values()))
        maps = []
        for image, meta in zip(logits, metas, strict=True):
            resized = functional.interpolate(
                image[None],
                size=tuple(meta['ori_shape'][:2]),
                mode='bilinear',
                align_corners=False,
            )
            maps.append(resized[0].argmax(dim=0))
        return maps
