"""``L = L_GT + lambda L_DRD``: a detector's loss with a float teacher's.

Distribution rectification distillation of Q-DETR, Xu et al., CVPR 2023,
equations 10 to 15, in training: the foreground is ground truth. Which
queries are compared, and how, is in ``taskptq/methods``.
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
    """What a config's ``distillation`` may say.

    Args:
        weight: lambda of the paper, 0 or more.
        normalize: Divide L_DRD by the root mean square norm of the teacher's
            features. The paper does not, and its lambda suits the features
            of its models: where they are long, L_DRD drowns the detector's
            own loss.
        box_weight: Of the boxes of foreground queries, each against the
            teacher's of its own index, 5 L1 + 2 (1 - GIoU); 0 or more. Not
            in the paper, nor is the next one.
        class_weight: Of the class logits of all queries, each against the
            teacher's of its own index (KL divergence, the means over the
            foreground and over the others added); 0 or more.
        tau: How near the best query of a ground truth a foreground query
            is, in [0, 1]; 1 keeps none.
        mu1: Weight of the boxes' similarity when partners are chosen.
        mu2: Weight of their L1 distance.
        matching: 'argmax', or 'hungarian' to give each teacher query away
            once at most.
        metric: 'giou', or 'nwd' for tiny objects.
        layers: Decoder layers whose features are compared: 'last', or 'all'
            (their mean), each matched by its own boxes.
        fqm: False compares all queries, each with that of its own index.
        teacher: ``dict(config=..., checkpoint=...)`` of another float model;
            None is the float model that the training begins with.

    Raises:
        ValueError: If a value cannot be.
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
                'distillation.fqm=False pairs queries by index, which mean '
                'nothing to another teacher: leave teacher out'
            )
        if teacher is not None and self.agrees:
            raise ValueError(
                'distillation.box_weight and class_weight compare queries of '
                'one index, which mean nothing to another teacher: leave '
                'them or teacher out'
            )

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> DistillationConfig:
        """Read the config's dict.

        Raises:
            SettingError: If a key is unknown or a value impossible.
        """
        known = [item.name for item in fields(cls)]
        check_keys(config, known, name='distillation')
        return cls(**config)

    @property
    def agrees(self) -> bool:
        """Whether boxes or classes are compared with the teacher's."""
        return bool(self.box_weight or self.class_weight)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        return asdict(self)


def cross_attention_taps(model: nn.Module) -> dict[int, nn.Module]:
    """Return what gives the features of each decoder layer out.

    Args:
        model: Prepared DETR.

    Raises:
        ValueError: If it has no such decoder.
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
            'check qconfig.keep_float, or leave distillation out'
        )
    return taps


@dataclass(frozen=True, kw_only=True)
class DecoderView:
    """What one forward showed of a detector's decoder.

    Args:
        attended: Co-attended features of each layer, (B, N, E).
        boxes: Of each layer, (B, N, 4), normalized cx, cy, w, h.
        classes: Logits of each layer, (B, N, C).
    """

    attended: dict[int, Tensor]
    boxes: dict[int, Tensor]
    classes: dict[int, Tensor]

    @classmethod
    def of(
        cls, model: nn.Module, found: Mapping[Any, Any], head: Sequence[Tensor]
    ) -> DecoderView:
        """Take over what was recorded, without denoising queries.

        Args:
            model: The detector that ran.
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
    """Return each image's boxes as a DETR's head writes them.

    Args:
        samples: mmdet's data samples, boxes as corners in pixels.
        like: Tensor whose device and dtype they get.

    Returns:
        (G, 4) for each image: cx, cy, w, h relative to the image's size.
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
    """Adds the teacher's part to the loss of one detector.

    The teacher is no sub-module of the student: no optimizer, checkpoint or
    ``train()`` reaches it.

    Args:
        student: Prepared DETR under training.
        teacher: Prepared float DETR.
        config: Settings.

    Raises:
        ValueError: If one of them is no DETR, or they cannot be compared.
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
                f"distillation.layers='all' compares layer by layer, and the "
                f'teacher has {len(other)} decoder layers, the model '
                f"{len(own)}: take layers='last'"
            )
        last = [(max(own), max(other))]
        pairs = [(layer, layer) for layer in own]
        self.layers = pairs if config.layers == 'all' else last
        classes = student.bbox_head.loss_cls
        self.use_sigmoid = bool(getattr(classes, 'use_sigmoid', False))
        self._own_loss: Callable[..., Any] | None = None

    def attach(self) -> None:
        """Let the student's ``loss`` give ours out as well."""
        self._own_loss = self.student.loss
        # On the instance: the host's class is not touched.
        self.student.loss = self.loss

    def detach(self) -> None:
        """Give the student its own loss back."""
        vars(self.student).pop('loss', None)
        self._own_loss = None

    def loss(
        self, inputs: Tensor, samples: Sequence[Any], **kwargs: Any
    ) -> dict[str, Any]:
        """Return the detector's losses and ``loss_drd``, already weighted.

        Args:
            inputs: Preprocessed images; the teacher reads the same.
            samples: Their data samples.
            kwargs: Handed to the detector.
        """
        assert self._own_loss is not None
        with self._recorded(self.student) as found:
            losses = dict(self._own_loss(inputs, samples, **kwargs))
        student = DecoderView.of(self.student, found, found[HEAD])
        with torch.no_grad(), self._recorded(self.teacher) as found:
            # Heads are run past their hooks in this mode.
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
        """Watch the cross-attentions and the head while a model runs."""
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
        """Return the weighted losses of one decoder layer and the teacher's.

        Raises:
            ValueError: If their features have different widths.
        """
        feature, target = student.attended[pair[0]], teacher.attended[pair[1]]
        if feature.shape[-1] != target.shape[-1]:
            raise ValueError(
                f'the co-attended features of the teacher have '
                f'{target.shape[-1]} channels, those of the model '
                f'{feature.shape[-1]}: take a teacher of the same width'
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
        """Return the pairs of queries whose features are compared."""
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
        """Return how boxes and classes differ from the same queries'."""
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
            # A mean over no query is 0, not undefined.
            means = [
                apart[chosen].sum() / chosen.sum().clamp(min=1)
                for chosen in (near, ~near)
            ]
            found[CLASS_LOSS_NAME] = config.class_weight * sum(means)
        return found
