"""``L = L_GT + lambda L_DRD``: a detector's loss plus a float teacher's.

Distribution rectification distillation of Q-DETR, Xu et al., CVPR 2023,
equations 10 to 15, for training: the foreground comes from ground truth.
``taskptq/methods/qdetr`` selects and compares the queries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.core.settings import (
    Choice,
    Flag,
    Number,
    check_fields,
    check_keys,
    setting,
)
from taskptq.engine.detr_adapters import (
    decoder_taps,
    matching_queries,
    recorded,
)
from taskptq.engine.hook_settings import check_teacher
from taskptq.methods.qdetr.agreement import (
    GIOU_WEIGHT,
    L1_WEIGHT,
    box_distances,
    class_divergence,
    distillation_distance,
    relative_distance,
)
from taskptq.methods.qdetr.matching import (
    METRICS,
    QueryMatch,
    all_queries,
    match_queries,
)

__all__ = ['Distillation', 'DistillationConfig', 'ground_truth']

LOSS_NAME = 'loss_drd'
BOX_LOSS_NAME = 'loss_agreement_box'
CLASS_LOSS_NAME = 'loss_agreement_cls'
MATCHINGS = ('argmax', 'hungarian')
LAYERS = ('last', 'all')
HEAD = 'head'
WEIGHT = Number(low=0, high=1e6)


@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """Settings of ``distillation``.

    Args:
        weight: lambda of the paper, >= 0.
        normalize: Divide L_DRD by the root mean square norm of the teacher's
            features. The paper does not, and its lambda suits the features
            of its models: with longer features, L_DRD would dominate the
            detector's own loss.
        box_weight: Weight of the box term, >= 0; not in the paper. It
            compares each foreground query with the teacher's query of the
            same index: 5 L1 + 2 (1 - GIoU).
        class_weight: Weight of the class term, >= 0; not in the paper. It
            compares the logits of each query with the teacher's of the same
            index: KL divergence, mean over the foreground plus mean over the
            rest.
        tau: Similarity to a ground truth's best query that makes a query
            foreground, in [0, 1]; 1 keeps none.
        mu1: Weight of box similarity in matching.
        mu2: Weight of the boxes' L1 distance in matching.
        matching: 'argmax', or 'hungarian' to use each teacher query at most
            once.
        metric: 'giou', or 'nwd' for tiny objects.
        layers: Decoder layers whose features are compared: 'last', or 'all'
            (their mean), each matched by its own boxes.
        fqm: False compares all queries, each with the teacher's of the same
            index.
        teacher: ``dict(config=..., checkpoint=...)`` of another float model;
            None is the float model that training starts from.

    Raises:
        ValueError: If a value is invalid.
    """

    weight: float = setting(2.5, WEIGHT)
    normalize: bool = setting(False, Flag())
    box_weight: float = setting(0.0, WEIGHT)
    class_weight: float = setting(0.0, WEIGHT)
    tau: float = setting(0.6, Number(low=0, high=1))
    mu1: float = setting(2.0, WEIGHT)
    mu2: float = setting(5.0, WEIGHT)
    matching: str = setting('argmax', Choice(choices=MATCHINGS))
    metric: str = setting('giou', Choice(choices=METRICS))
    layers: str = setting('last', Choice(choices=LAYERS))
    fqm: bool = setting(True, Flag())
    teacher: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        check_fields(self, name='distillation')
        teacher = self.teacher
        if teacher is not None:
            check_teacher(teacher, name='distillation.teacher')
        if teacher is not None and not self.fqm:
            raise ValueError(
                'distillation.fqm=False pairs queries by index, but the '
                'queries of another teacher have another order: remove '
                'teacher'
            )
        if teacher is not None and self.agrees:
            raise ValueError(
                'distillation.box_weight and class_weight pair queries by '
                'index, but the queries of another teacher have another '
                'order: remove them or teacher'
            )

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> DistillationConfig:
        """Read the config's dict.

        Raises:
            SettingError: If a key is unknown or a value invalid.
        """
        known = [item.name for item in fields(cls)]
        check_keys(config, known, name='distillation')
        return cls(**config)

    @property
    def agrees(self) -> bool:
        """Whether the box or the class term is used."""
        return bool(self.box_weight or self.class_weight)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        return asdict(self)


def cross_attention_taps(model: nn.Module) -> dict[int, nn.Module]:
    """Return the module that outputs the features of each decoder layer.

    Args:
        model: Prepared DETR.

    Returns:
        Layer index -> module.

    Raises:
        ValueError: If the model has no such decoder.
    """
    taps = {}
    if hasattr(model, 'decoder') and hasattr(model, 'num_queries'):
        taps = {
            int(name.partition('.')[2]): tap
            for name, tap in decoder_taps(model).items()
            if name.startswith('attended.')
        }
    if not taps:
        raise ValueError(
            f'distillation needs a DETR whose cross-attention has a '
            f'quantized counterpart, and {type(model).__name__} has none: '
            'check qconfig.keep_float, or remove distillation'
        )
    return taps


@dataclass(frozen=True, kw_only=True)
class DecoderView:
    """Outputs of a detector's decoder, recorded during one forward.

    Args:
        attended: Co-attended features of each layer, (B, N, E).
        boxes: Boxes of each layer, (B, N, 4), normalized cx, cy, w, h.
        classes: Logits of each layer, (B, N, C).
    """

    attended: dict[int, Tensor]
    boxes: dict[int, Tensor]
    classes: dict[int, Tensor]

    @classmethod
    def of(
        cls, model: nn.Module, found: Mapping[Any, Any], head: Sequence[Tensor]
    ) -> DecoderView:
        """Build from a recording, without denoising queries.

        Args:
            model: Detector that ran.
            found: Features by layer, (B, denoising + N, E).
            head: Logits and boxes of the last L layers,
                (L, B, denoising + N, C or 4).
        """
        count = int(model.num_queries)
        features = {key: out for key, out in found.items() if key != HEAD}
        classes, boxes = head[0], head[1]
        first = max(features) + 1 - len(boxes)
        return cls(
            attended={
                layer: matching_queries(feature, num_queries=count)
                for layer, feature in features.items()
            },
            boxes={
                layer: matching_queries(box, num_queries=count)
                for layer, box in enumerate(boxes, start=first)
            },
            classes={
                layer: matching_queries(logits, num_queries=count)
                for layer, logits in enumerate(classes, start=first)
            },
        )


def ground_truth(samples: Sequence[Any], *, like: Tensor) -> list[Tensor]:
    """Return each image's boxes in the format of a DETR head.

    Args:
        samples: mmdet's data samples; boxes as corners in pixels.
        like: Tensor whose device and dtype the boxes get.

    Returns:
        (G, 4) for each image: cx, cy, w, h relative to the image size.
    """
    found = []
    for sample in samples:
        height, width = sample.metainfo['img_shape'][:2]
        boxes = sample.gt_instances.bboxes
        corners = getattr(boxes, 'tensor', boxes).to(like)
        corners = corners / corners.new_tensor([width, height] * 2)
        low, high = corners[:, :2], corners[:, 2:]
        found.append(torch.cat([(low + high) / 2, high - low], dim=1))
    return found


class Distillation:
    """Distillation term in the loss of one detector.

    The teacher is not a sub-module of the student, so that no optimizer,
    checkpoint or ``train()`` reaches it.

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
        self._own_loss: Callable[..., Any] | None = None

    def attach(self) -> None:
        """Make the student's ``loss`` include the distillation."""
        self._own_loss = self.student.loss
        # On the instance, so that the host's class stays untouched.
        self.student.loss = self.loss

    def detach(self) -> None:
        """Restore the student's own loss."""
        vars(self.student).pop('loss', None)
        self._own_loss = None

    def loss(
        self, inputs: Tensor, samples: Sequence[Any], **kwargs: Any
    ) -> dict[str, Any]:
        """Return the detector's losses and the weighted ``loss_drd``.

        Args:
            inputs: Preprocessed images for student and teacher.
            samples: Their data samples.
            kwargs: Further arguments of the detector's ``loss``.
        """
        assert self._own_loss is not None
        with self._recorded(self.student) as found:
            losses = dict(self._own_loss(inputs, samples, **kwargs))
        student = DecoderView.of(self.student, found, found[HEAD])
        with torch.no_grad(), self._recorded(self.teacher) as found:
            # Tensor mode calls head.forward, which bypasses hooks.
            head = self.teacher(inputs, samples, mode='tensor')
        teacher = DecoderView.of(self.teacher, found, head)
        terms = [
            self._terms(student, teacher, samples, pair=pair)
            for pair in self.layers
        ]
        for name in terms[0]:
            losses[name] = torch.stack([term[name] for term in terms]).mean()
        return losses

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
