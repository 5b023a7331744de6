"""Query distillation: matched queries of a DETR read the same image features.

Distribution rectification distillation (DRD) of Q-DETR, Xu et al., CVPR 2023
(arXiv 2304.00253), equations 13 to 15: the co-attended features D of the
student's foreground queries are pulled to those of their teacher queries,
``L_DRD = E |D_student - D_teacher|_2`` (not squared). The paper trains on
ground truth; here the same objective reconstructs a network without labels.
Confident predictions of the float model are the foreground, and the agreement
of boxes and classes replaces the detection loss, without which nothing behind
the last cross-attention would learn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from taskptq.core.settings import Choice, Flag, Number, Rule, refuse
from taskptq.methods.qdetr.agreement import (
    GIOU_WEIGHT,
    L1_WEIGHT,
    background_divergence,
    box_distances,
    check_metric,
    compare_teachers,
    distillation_distance,
    matched_divergence,
    relative_distance,
)
from taskptq.methods.qdetr.matching import (
    METRICS,
    ImageSize,
    QueryMatch,
    all_queries,
    match_queries,
)
from taskptq.methods.qdetr.record import DistillationRecord
from taskptq.reconstruction.losses import NetworkProbe, Outputs, ReconContext
from taskptq.registry import RECON_LOSSES

__all__ = ['QueryDistillationLoss', 'distillation_distance']

MATCHINGS = ('argmax', 'hungarian')
LAYERS = ('last', 'all')
AGREEMENTS = ('partner', 'own')
_SHARE, _WEIGHT = Number(low=0, high=1), Number(low=0, high=1e6)
RULES: dict[str, Rule] = {
    'tau': _SHARE,
    'mu1': _WEIGHT,
    'mu2': _WEIGHT,
    'matching': Choice(choices=MATCHINGS),
    'metric': Choice(choices=METRICS),
    'layers': Choice(choices=LAYERS),
    'weight': _WEIGHT,
    'box_weight': _WEIGHT,
    'class_weight': _WEIGHT,
    'agreement': Choice(choices=AGREEMENTS),
    'background_weight': _WEIGHT,
    'teacher_score_thr': _SHARE,
    'normalize': Flag(),
    'fqm': Flag(),
}
Heads = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class _Step:
    """Outputs of one minibatch, and its foreground."""

    student: Heads
    teacher: Heads
    own: Heads  # of the float model itself, with the student's query indices
    truths: Sequence[Tensor]
    sizes: Sequence[ImageSize] | None
    use_sigmoid: bool


@RECON_LOSSES.register_module()
class QueryDistillationLoss:
    """Distil the queries of a DETR-type detector, on the whole network.

    Use it with ``reconstruction.scope='network'`` or ``network_steps`` and
    an adapter that names ``cls.{layer}``, ``box.{layer}`` and
    ``attended.{layer}``. The loss of a layer is::

        weight L_DRD + box_weight (5 L1 + 2 (1 - GIoU))
        + class_weight (KL_matched + background_weight KL_others)

    Args:
        tau: How close a foreground query must be to an object, relative to
            the object's best query, [0, 1]; 1 keeps none.
        mu1: Weight of the boxes' similarity when choosing partners.
        mu2: Weight of the boxes' L1 distance when choosing partners.
        matching: 'argmax', or 'hungarian' to give each partner to one
            student query only.
        metric: 'giou', 'nwd' for tiny objects, or 'strip' of lines.
        layers: 'last' decoder layer, or the mean over 'all', each matched by
            its own boxes.
        weight: Weight of the co-attended features, L_DRD.
        box_weight: Weight of the boxes of matched queries.
        class_weight: Weight of the class logits.
        agreement: Target of boxes and classes of foreground queries:
            'partner' is the matched teacher query, 'own' the float model's
            query of the same index. Partners may be shared: two queries on
            one object then both learn its score, and one of them becomes a
            false detection.
        background_weight: Weight of the class logits of queries without a
            partner, which should stay as in the float model; relative to
            ``class_weight``.
        teacher_score_thr: Confidence from which on a prediction of the
            teacher counts as an object, [0, 1].
        normalize: Divide L_DRD by the RMS norm of the teacher's features.
        fqm: False distils all queries, each from the teacher query of the
            same index.
        teacher: A teacher other than the float model itself; in a config
            ``dict(config=..., checkpoint=...)``.

    Raises:
        ValueError: If a value is invalid.
    """

    by_query = True

    def __init__(
        self,
        *,
        tau: float = 0.6,
        mu1: float = 2.0,
        mu2: float = 5.0,
        matching: str = 'argmax',
        metric: str = 'giou',
        layers: str = 'last',
        weight: float = 1.0,
        box_weight: float = 1.0,
        class_weight: float = 1.0,
        agreement: str = 'partner',
        background_weight: float = 1.0,
        teacher_score_thr: float = 0.3,
        normalize: bool = True,
        fqm: bool = True,
        teacher: Any = None,
    ) -> None:
        self.tau = tau
        self.mu1 = mu1
        self.mu2 = mu2
        self.matching = matching
        self.metric = metric
        self.layers = layers
        self.weight = weight
        self.box_weight = box_weight
        self.class_weight = class_weight
        self.agreement = agreement
        self.background_weight = background_weight
        self.teacher_score_thr = teacher_score_thr
        self.normalize = normalize
        self.fqm = fqm
        self.teacher = teacher
        # Plain text, part of the digest of saved states.
        self.teacher_name = str(getattr(teacher, 'name', ''))
        self._check()
        self._record = DistillationRecord()

    def _check(self) -> None:
        for name, rule in RULES.items():
            setattr(self, name, rule.read(getattr(self, name), name=name))
        weights = ('weight', 'box_weight', 'class_weight')
        if not any(getattr(self, name) for name in weights):
            raise refuse(
                'weight',
                self.weight,
                f'set one of {", ".join(weights)} above 0',
            )
        if isinstance(self.teacher, Mapping):
            raise ValueError(
                f'teacher={dict(self.teacher)} is still a config: build the '
                'loss with taskptq.engine.build_loss'
            )
        if self.teacher is not None and not self.fqm:
            raise ValueError(
                'fqm=False pairs queries by their index, which means nothing '
                'for another teacher: remove teacher'
            )

    def begin(self, probe: NetworkProbe) -> None:
        """Record the image sizes, and run another teacher once.

        Args:
            probe: The network before the first step.

        Raises:
            ValueError: If another teacher needs batches and the probe has
                none.
        """
        record = self._record = DistillationRecord.of_batches(probe.metas)
        if self.teacher is None:
            return
        if len(probe.batches) != len(record.metas):
            raise ValueError(
                'another teacher runs on the calibration batches, which this '
                'probe lacks: give it its batches, and no vary_images'
            )
        device = next(iter(probe.heads_float[0].values())).device
        found = self.teacher.run(probe.batches, device=device)
        for number, heads in zip(record.metas, found, strict=True):
            record.teacher_heads[number] = self._needed(heads)

    def _needed(self, heads: Heads) -> dict[str, Tensor]:
        """Return the teacher's outputs that the chosen layers need."""
        kinds = [
            f'{kind}.{layer}'
            for kind in ('cls', 'box', 'attended')
            for layer in self._layers(heads)
        ]
        return {name: heads[name] for name in kinds if name in heads}

    def _layers(self, heads: Heads) -> list[int]:
        """Return the numbers of the chosen layers."""
        numbers = sorted(
            int(name.partition('.')[2])
            for name in heads
            if name.startswith('box.')
        )
        return numbers[-1:] if self.layers == 'last' else numbers

    def __call__(
        self, quant_out: Outputs, float_out: Outputs, context: ReconContext
    ) -> Tensor:
        """Return the loss of one minibatch.

        Raises:
            ValueError: If the unit isn't the whole network, or the adapter
                or teacher doesn't fit.
        """
        if (
            context.unit
            or not isinstance(quant_out, dict)
            or not isinstance(float_out, dict)
            or not self._layers(quant_out)
        ):
            raise ValueError(
                f'{type(self).__name__} on the unit {context.unit!r}: it '
                "needs a DETR's named heads; set "
                "reconstruction.scope='network' or network_steps"
            )
        step = self._prepare(quant_out, float_out, context)
        return self._loss(step)

    def _loss(self, step: _Step) -> Tensor:
        """Return the mean loss of the chosen layers, and record its terms."""
        own = self._layers(step.student)
        others = self._layers(step.teacher)
        if len(own) != len(others):
            raise ValueError(
                f"layers='all' needs a teacher with {len(own)} decoder "
                f"layers, but this one has {len(others)}: use layers='last'"
            )
        found = [
            self._layer(step, layer, other)
            for layer, other in zip(own, others, strict=True)
        ]
        terms = {
            name: torch.stack([layer[name] for layer in found]).mean()
            for name in found[0]
        }
        self._record.note(terms)
        return torch.stack(list(terms.values())).sum()

    def _prepare(
        self, student: Heads, own: Heads, context: ReconContext
    ) -> _Step:
        """Collect the outputs and the foreground of a minibatch."""
        teacher, adapter = own, context.adapter
        first = context.image_ids[0] if context.image_ids else -1
        if self.teacher is not None:
            if first not in self._record.teacher_heads:
                raise ValueError(
                    'the teacher has not seen these images: call '
                    'begin() with the probe of the network first'
                )
            adapter = self.teacher.adapter
            teacher = self._record.teacher_heads[first]
            compare_teachers(
                student,
                teacher,
                layers=(self._layers(student)[-1], self._layers(teacher)[-1]),
                adapters=(context.adapter, adapter),
                attended=bool(self.weight),
                classes=bool(self.class_weight),
            )
        check_metric(self.metric, adapter)
        metas = self._record.metas.get(first)
        sizes = None
        if self.metric == 'nwd' and metas is not None:
            sizes = [tuple(meta['img_shape'][:2]) for meta in metas]
        return _Step(
            student=student,
            teacher=teacher,
            own=own,
            truths=self._foreground(teacher, adapter),
            sizes=sizes,
            use_sigmoid=bool(getattr(context.adapter, 'use_sigmoid', True)),
        )

    @torch.no_grad()
    def _foreground(self, teacher: Heads, adapter: Any) -> list[Tensor]:
        """Return the teacher's confident boxes, image by image.

        Those of its last layer serve all layers, like ground truth.
        """
        last = self._layers(teacher)[-1]
        proxy = adapter.foreground_proxy(teacher)[f'cls.{last}']
        sure = proxy[..., 0] > self.teacher_score_thr
        return [
            boxes[keep]
            for boxes, keep in zip(teacher[f'box.{last}'], sure, strict=True)
        ]

    def _layer(self, step: _Step, layer: int, other: int) -> dict[str, Tensor]:
        """Return the weighted terms of one decoder layer.

        Args:
            step: The minibatch.
            layer: Number of the student's layer.
            other: Number of the teacher's layer.
        """
        match = self._match(step, layer, other)
        self._record.count(match)
        terms: dict[str, Tensor] = {}
        if self.weight:
            found = self._attended(step, layer, other, match)
            terms['attended'] = self.weight * found
        teacher = step.teacher
        if self.agreement == 'own':
            teacher, other = step.own, layer
            match = replace(match, teacher=match.student)
        if self.box_weight:
            l1, giou = box_distances(
                step.student[f'box.{layer}'],
                teacher[f'box.{other}'],
                match=match,
                metric=self.metric,
            )
            box = L1_WEIGHT * l1 + GIOU_WEIGHT * giou
            terms['box'] = self.box_weight * box
        if self.class_weight:
            found = matched_divergence(
                step.student[f'cls.{layer}'],
                teacher[f'cls.{other}'],
                match=match,
                use_sigmoid=step.use_sigmoid,
            )
            terms['class'] = self.class_weight * found
            weight = self.class_weight * self.background_weight
            terms['background'] = weight * background_divergence(
                step.student[f'cls.{layer}'],
                step.own[f'cls.{layer}'],
                match=match,
                use_sigmoid=step.use_sigmoid,
            )
        return terms

    def _match(self, step: _Step, layer: int, other: int) -> QueryMatch:
        boxes = step.student[f'box.{layer}'].detach()
        if not self.fqm:
            return all_queries(boxes)
        return match_queries(
            boxes,
            step.teacher[f'box.{other}'],
            step.truths,
            tau=self.tau,
            mu1=self.mu1,
            mu2=self.mu2,
            metric=self.metric,
            one_to_one=self.matching == 'hungarian',
            image_sizes=step.sizes,
        )

    def _attended(
        self, step: _Step, layer: int, other: int, match: QueryMatch
    ) -> Tensor:
        """Return L_DRD of one layer."""
        name, target = f'attended.{layer}', f'attended.{other}'
        if name not in step.student or target not in step.teacher:
            raise ValueError(
                f"the heads have no {name}: the decoder's cross-attention "
                'has no quantized counterpart; quantize it (see '
                'qconfig.keep_float), or set weight=0'
            )
        distance = distillation_distance
        if self.normalize:
            distance = relative_distance
        return distance(step.student[name], step.teacher[target], match=match)

    def report(self) -> dict[str, Any]:
        """Return counts of matched queries, and the loss terms over time."""
        return self._record.to_dict()
