"""One comparison of a student's features with its teacher's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.engine.adapters import Adapter, name_tensors
from taskptq.engine.short_names import short_name
from taskptq.methods.feature_losses import FeatureLoss
from taskptq.qat.distillation.logits import class_logits
from taskptq.qat.distillation.scene import Scene, decoder_of
from taskptq.qat.distillation.taps import LOGITS, Tap, find_taps
from taskptq.qat.distillation.view_config import ViewConfig

__all__ = ['DistillationView']


class DistillationView:
    """Taps x regions x weights x loss.

    ``L = weight x mean over features of loss(rows of the regions)``.

    Args:
        student: Prepared model in training.
        teacher: Prepared float model.
        config: Settings.
        adapter: The teacher's adapter.

    Raises:
        ValueError: If a tap finds nothing, the two models have other taps,
            or the region does not fit the model.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        config: ViewConfig,
        adapter: Adapter,
    ) -> None:
        self.config = config
        self.adapter = adapter
        self.loss: FeatureLoss = config.build_loss()
        self.region = config.build_region()
        self.importance = config.build_weights()
        self.region.check(student, adapter)
        self.taps = self.taps_of(student)
        missing = sorted(set(self.taps) - set(self.taps_of(teacher)))
        if missing:
            raise ValueError(
                f'the teacher has no {missing[0]}, which distillation.views '
                'taps: use a teacher of the same structure, or another tap'
            )

    @property
    def name(self) -> str:
        """Name of the loss in logs, without number."""
        kind = short_name(self.config.loss['type'], kind='reconstruction loss')
        return f'loss_{kind}'

    @property
    def wants_batches(self) -> bool:
        """Whether the loss measures the teacher before the first step."""
        return type(self.loss).prepare is not FeatureLoss.prepare

    def taps_of(self, model: nn.Module) -> dict[str, Tap]:
        """Return the places of a model that are compared."""
        return find_taps(model, self.config.taps, within=self.config.within)

    def prepare(self, records: Mapping[str, list[Any]]) -> None:
        """Show the loss what the teacher computed on calibration images."""
        for name, feature in self._features(records):
            self.loss.prepare(name, self.loss.arrange(feature.float()))

    def value(self, scene: Scene) -> Tensor:
        """Return the weighted loss of a batch.

        Raises:
            ValueError: If the features of both models do not match.
        """
        own = dict(self._features(scene.own))
        if not own:
            raise ValueError(
                f'distillation.views: {", ".join(self.config.taps)} gave no '
                'tensor with an axis of positions where this model computes '
                'its loss: choose another tap, such as neck'
            )
        other = dict(self._features(scene.other))
        pairs = {
            name: self._pair(name, student, other.get(name), scene)
            for name, student in own.items()
        }
        values = list(self._values(scene, pairs))
        if not values:
            # No object in this batch: a term without gradient.
            values = [next(iter(own.values())).float().sum() * 0.0]
        return self.config.weight * torch.stack(values).mean()

    def _values(
        self, scene: Scene, pairs: Mapping[str, tuple[Tensor, Tensor]]
    ) -> Iterator[Tensor]:
        loss = self.loss
        if loss.reads != 'rows':
            for name, (student, teacher) in pairs.items():
                yield loss.compare(
                    loss.arrange(student), loss.arrange(teacher), name=name
                )
            return
        features = {
            name: (student, teacher, self.importance.of(scene, teacher))
            for name, (student, teacher) in pairs.items()
        }
        for name, rows in self.region.rows(scene, features):
            if len(rows.student):
                yield loss.compare(
                    rows.student,
                    rows.teacher,
                    weights=rows.weights,
                    name=name,
                )

    def _features(
        self, records: Mapping[str, list[Any]]
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the named features of a model's records."""
        for tap in self.taps:
            calls = records[tap]
            for number, output in enumerate(calls):
                prefix = tap if len(calls) == 1 else f'{tap}.call{number}'
                if LOGITS in self.config.taps:
                    output = class_logits(output, adapter=self.adapter)
                for name, tensor in name_tensors(output, prefix=prefix):
                    if tensor.is_floating_point() and tensor.dim() >= 3:
                        yield name, tensor

    def _pair(
        self, name: str, student: Tensor, teacher: Tensor | None, scene: Scene
    ) -> tuple[Tensor, Tensor]:
        if teacher is None:
            raise ValueError(
                f'distillation.views: the teacher computed no {name}: its '
                'forward has another course; use another tap'
            )
        if decoder_of(scene.student):
            student = without_denoising(student, like=teacher)
        axis = 1 if student.dim() == 4 and self.loss.reads == 'rows' else -1
        widths = student.shape[axis], teacher.shape[axis]
        if self.loss.same_width and widths[0] != widths[1]:
            raise ValueError(
                f'{name} has {widths[0]} channels, but {widths[1]} in the '
                'teacher: use a teacher of the same width, or the loss gram'
            )
        return student.float(), teacher.detach().float()


def without_denoising(feature: Tensor, *, like: Tensor) -> Tensor:
    """Drop the denoising queries, which come first while DINO trains.

    Args:
        feature: (B, N, C), (B, H, N, d) or an attention map (B, H, N, M).
        like: The same feature of a model in evaluation.
    """
    for axis in range(1, feature.dim()):
        extra = feature.shape[axis] - like.shape[axis]
        if extra > 0 and feature.dim() == like.dim():
            feature = feature.narrow(axis, extra, like.shape[axis])
    return feature
