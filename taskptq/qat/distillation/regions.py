"""Which positions of two models' features are compared."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from taskptq.core.settings import Choice, Number
from taskptq.engine.adapters import SegmentorAdapter
from taskptq.methods.qdetr.matching import METRICS, match_queries
from taskptq.qat.distillation.decoder import DecoderView, ground_truth
from taskptq.qat.distillation.importance import fitted
from taskptq.qat.distillation.proposals import DiscrepancyRegion
from taskptq.qat.distillation.region import (
    Features,
    MaskRegion,
    Region,
    Rows,
)
from taskptq.qat.distillation.scene import Scene, decoder_of

__all__ = ['REGIONS', 'Region', 'Rows']

LAYER = re.compile(r'(?:^|\.)decoder\.layers\.(\d+)\.')


class AnnotationsRegion(MaskRegion):
    """Cells inside of a true box, and the one at its centre."""

    def mask(self, scene: Scene, feature: Tensor) -> Tensor:
        """Return the cells, (B, H, W)."""
        height, width = feature.shape[-2:]
        stride = scene.stride(feature)
        centres = [
            (torch.arange(n, device=feature.device) + 0.5) * stride
            for n in (height, width)
        ]
        ys, xs = torch.meshgrid(*centres, indexing='ij')
        found = []
        for boxes in scene.annotations():
            x1, y1, x2, y2 = boxes.T[..., None, None]
            inside = (xs >= x1) & (xs <= x2) & (ys >= y1) & (ys <= y2)
            x, y = (x1 + x2) / 2, (y1 + y2) / 2
            half = stride / 2
            near = ((xs - x).abs() <= half) & ((ys - y).abs() <= half)
            found.append((inside | near).any(dim=0))
        return torch.stack(found).to(feature)


class ForegroundRegion(MaskRegion):
    """Cells where the teacher sees an object.

    Args:
        threshold: Least confidence, [0, 1].
    """

    def __init__(self, *, threshold: float = 0.1) -> None:
        rule = Number(low=0, high=1)
        self.threshold = rule.read(threshold, name='threshold')

    def mask(self, scene: Scene, feature: Tensor) -> Tensor:
        """Return the cells, (B, H, W)."""
        proxy = fitted(scene.foreground(), feature, name='foreground')
        return (proxy[:, 0] >= self.threshold).to(feature)


class ClassesRegion(MaskRegion):
    """All cells of a segmentor's features; each class counts the same.

    Classes are those of the teacher's map: without this, a road outvotes
    whatever stands on it.
    """

    def check(self, student: nn.Module, adapter: object) -> None:
        """Refuse models without a map of classes.

        Raises:
            ValueError: If it is no segmentor.
        """
        if not isinstance(adapter, SegmentorAdapter):
            raise ValueError(
                f"regions='classes' needs a segmentor, not "
                f"{type(student).__name__}: use regions='foreground'"
            )

    def mask(self, scene: Scene, feature: Tensor) -> Tensor:
        """Return the weights, (B, H, W); each image has mean 1."""
        logits = next(h for h in scene.heads.values() if h.dim() == 4)
        logits = functional.interpolate(
            logits.float(),
            size=feature.shape[-2:],
            mode='bilinear',
            align_corners=False,
        )
        classes = logits.argmax(dim=1)
        members = functional.one_hot(classes, logits.shape[1]).float()
        counts = members.sum(dim=(1, 2))  # B x classes
        present = (counts > 0).sum(dim=1, keepdim=True)
        share = classes[0].numel() / (counts.clamp(min=1) * present)
        return (members * share[:, None, None]).sum(dim=-1).to(feature)


class QueriesRegion(Region):
    """Queries near a true box and the teacher's queries they match.

    Q-DETR, Xu et al., CVPR 2023; see ``taskptq.methods.qdetr.matching``.

    Args:
        tau: Similarity to a truth's best query from which one counts.
        mu1: Weight of the similarity of boxes in matching.
        mu2: Weight of their L1 distance.
        matching: 'argmax', or 'hungarian' to use each teacher query once.
        metric: 'giou', or 'nwd' for tiny objects.
    """

    def __init__(
        self,
        *,
        tau: float = 0.6,
        mu1: float = 2.0,
        mu2: float = 5.0,
        matching: str = 'argmax',
        metric: str = 'giou',
    ) -> None:
        weight = Number(low=0, high=1e6)
        self.tau = Number(low=0, high=1).read(tau, name='tau')
        self.mu1 = weight.read(mu1, name='mu1')
        self.mu2 = weight.read(mu2, name='mu2')
        kinds = Choice(choices=('argmax', 'hungarian'))
        self.one_to_one = kinds.read(matching, name='matching') == 'hungarian'
        self.metric = Choice(choices=METRICS).read(metric, name='metric')

    def check(self, student: nn.Module, adapter: object) -> None:
        """Refuse models without queries.

        Raises:
            ValueError: If it is no DETR.
        """
        if not decoder_of(student):
            raise ValueError(
                f"regions='queries' needs a DETR, not "
                f"{type(student).__name__}: use regions='annotations'"
            )

    def rows(
        self, scene: Scene, features: Features
    ) -> Iterator[tuple[str, Rows]]:
        """Yield the matched queries of each decoder layer."""
        pairs = _by_layer(features)
        views = [
            DecoderView.of(
                model,
                {layer: pair[side] for layer, (_, pair) in pairs.items()},
                records['bbox_head'][-1],
            )
            for side, model, records in (
                (0, scene.student, scene.own),
                (1, scene.teacher, scene.other),
            )
        ]
        for layer, (name, _) in pairs.items():
            boxes = [view.boxes[layer].detach() for view in views]
            match = match_queries(
                boxes[0],
                boxes[1],
                ground_truth(scene.samples, like=boxes[0]),
                tau=self.tau,
                mu1=self.mu1,
                mu2=self.mu2,
                metric=self.metric,
                one_to_one=self.one_to_one,
                image_sizes=[
                    tuple(sample.metainfo['img_shape'][:2])
                    for sample in scene.samples
                ],
            )
            weights = features[name][2]
            if weights is not None:
                weights = match.of_teacher(weights)[:, 0]
            yield (
                name,
                Rows(
                    student=match.of_student(views[0].attended[layer]),
                    teacher=match.of_teacher(views[1].attended[layer]),
                    weights=weights,
                ),
            )


def _by_layer(
    features: Features,
) -> dict[int, tuple[str, tuple[Tensor, Tensor]]]:
    """Return the features of queries by decoder layer.

    Raises:
        ValueError: If a feature is not of a decoder layer.
    """
    found = {}
    for name, (student, teacher, _) in features.items():
        layer = LAYER.search(name)
        if layer is None or student.dim() != 3:
            raise ValueError(
                f"regions='queries' compares features (B, N, C) of decoder "
                f'layers, not {name} {tuple(student.shape)}: use '
                "taps='attended' and within='decoder.*cross_attn*'"
            )
        found[int(layer[1])] = (name, (student, teacher))
    return found


REGIONS: Mapping[str, type[Region]] = {
    'all': Region,
    'annotations': AnnotationsRegion,
    'queries': QueriesRegion,
    'discrepancy': DiscrepancyRegion,
    'foreground': ForegroundRegion,
    'classes': ClassesRegion,
}
