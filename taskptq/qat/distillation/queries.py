"""``L = L_GT + lambda L_DRD``: the queries of a DETR and their teacher's.

Distribution rectification distillation of Q-DETR, Xu et al., CVPR 2023,
equations 10 to 15, for training: the foreground comes from ground truth.
``taskptq/methods/qdetr`` selects and compares the queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.engine.detr_adapters import recorded
from taskptq.methods.qdetr.agreement import (
    GIOU_WEIGHT,
    L1_WEIGHT,
    box_distances,
    class_divergence,
    distillation_distance,
    relative_distance,
)
from taskptq.methods.qdetr.matching import (
    QueryMatch,
    all_queries,
    match_queries,
)
from taskptq.qat.distillation.config import DistillationConfig
from taskptq.qat.distillation.decoder import (
    HEAD,
    DecoderView,
    cross_attention_taps,
    ground_truth,
)

__all__ = ['QueryTerm']

LOSS_NAME = 'loss_drd'
BOX_LOSS_NAME = 'loss_agreement_box'
CLASS_LOSS_NAME = 'loss_agreement_cls'


class QueryTerm:
    """Distillation of the queries of one detector.

    Args:
        student: Prepared DETR in training.
        teacher: Prepared float DETR.
        config: Settings.

    Raises:
        ValueError: If either is not a DETR, or they cannot be compared.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        config: DistillationConfig,
    ) -> None:
        self.student = student
        self.teacher = teacher
        self.config = config
        own = cross_attention_taps(student)
        other = cross_attention_taps(teacher)
        if config.layers == 'all' and own.keys() != other.keys():
            raise ValueError(
                f"distillation.layers='all' compares layer by layer, but the "
                f'teacher has {len(other)} decoder layers and the model '
                f"{len(own)}: use layers='last'"
            )
        last = [(max(own), max(other))]
        pairs = [(layer, layer) for layer in own]
        self.layers = pairs if config.layers == 'all' else last
        classes = student.bbox_head.loss_cls
        self.use_sigmoid = bool(getattr(classes, 'use_sigmoid', False))

    def recording(self) -> AbstractContextManager[dict[Any, Any]]:
        """Record what :meth:`losses` needs while the student runs."""
        return self._recorded(self.student)

    def losses(
        self, found: Mapping[Any, Any], inputs: Tensor, samples: Sequence[Any]
    ) -> dict[str, Tensor]:
        """Return the weighted ``loss_drd`` and the terms of agreement.

        Args:
            found: What was recorded of the student.
            inputs: Preprocessed images.
            samples: Their data samples.
        """
        student = DecoderView.of(self.student, found, found[HEAD])
        with torch.no_grad(), self._recorded(self.teacher) as found:
            # Tensor mode calls head.forward, which bypasses hooks.
            head = self.teacher(inputs, samples, mode='tensor')
        teacher = DecoderView.of(self.teacher, found, head)
        terms = [
            self._terms(student, teacher, samples, pair=pair)
            for pair in self.layers
        ]
        return {
            name: torch.stack([term[name] for term in terms]).mean()
            for name in terms[0]
        }

    def _recorded(
        self, model: nn.Module
    ) -> AbstractContextManager[dict[Any, Any]]:
        """Record cross-attentions and head while a model runs."""
        places: dict[Any, nn.Module] = dict(cross_attention_taps(model))
        return recorded({**places, HEAD: model.bbox_head})

    def _terms(
        self,
        student: DecoderView,
        teacher: DecoderView,
        samples: Sequence[Any],
        *,
        pair: tuple[int, int],
    ) -> dict[str, Tensor]:
        """Return the weighted losses between two decoder layers.

        Args:
            student: Outputs of the student.
            teacher: Outputs of the teacher.
            samples: Data samples of the images.
            pair: Layer of the student and layer of the teacher.

        Raises:
            ValueError: If their features have different widths.
        """
        feature, target = student.attended[pair[0]], teacher.attended[pair[1]]
        if feature.shape[-1] != target.shape[-1]:
            raise ValueError(
                f'the co-attended features of the teacher have '
                f'{target.shape[-1]} channels, those of the model '
                f'{feature.shape[-1]}: use a teacher of the same width'
            )
        match = self._match(student, teacher, samples, pair=pair)
        distance = (
            relative_distance
            if self.config.normalize
            else distillation_distance
        )
        found = {
            LOSS_NAME: self.config.weight
            * distance(feature, target, match=match)
        }
        if self.config.agrees:
            found |= self._agreement(student, teacher, pair=pair, match=match)
        return found

    def _match(
        self,
        student: DecoderView,
        teacher: DecoderView,
        samples: Sequence[Any],
        *,
        pair: tuple[int, int],
    ) -> QueryMatch:
        """Return the pairs of queries to compare."""
        boxes = student.boxes[pair[0]].detach()
        if not self.config.fqm:
            return all_queries(boxes)
        return match_queries(
            boxes,
            teacher.boxes[pair[1]],
            ground_truth(samples, like=boxes),
            tau=self.config.tau,
            mu1=self.config.mu1,
            mu2=self.config.mu2,
            metric=self.config.metric,
            one_to_one=self.config.matching == 'hungarian',
            image_sizes=[
                tuple(sample.metainfo['img_shape'][:2]) for sample in samples
            ],
        )

    def _agreement(
        self,
        student: DecoderView,
        teacher: DecoderView,
        *,
        pair: tuple[int, int],
        match: QueryMatch,
    ) -> dict[str, Tensor]:
        """Return the box and class terms."""
        config, own = self.config, replace(match, teacher=match.student)
        found = {}
        if config.box_weight:
            l1, giou = box_distances(
                student.boxes[pair[0]], teacher.boxes[pair[1]], match=own
            )
            box = L1_WEIGHT * l1 + GIOU_WEIGHT * giou
            found[BOX_LOSS_NAME] = config.box_weight * box
        if config.class_weight:
            apart = class_divergence(
                student.classes[pair[0]],
                teacher.classes[pair[1]],
                use_sigmoid=self.use_sigmoid,
            )
            near = torch.zeros_like(apart, dtype=torch.bool)
            near[match.image, match.student] = True
            # The mean over no queries is 0, not NaN.
            means = [
                apart[chosen].sum() / chosen.sum().clamp(min=1)
                for chosen in (near, ~near)
            ]
            found[CLASS_LOSS_NAME] = config.class_weight * sum(means)
        return found
