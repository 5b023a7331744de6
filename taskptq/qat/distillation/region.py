"""The port of regions, and regions that are masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from taskptq.methods.feature_losses import rows_of
from taskptq.qat.distillation.scene import Scene

__all__ = ['Features', 'MaskRegion', 'Region', 'Rows']

# Name -> feature of the student, of the teacher, and weights of positions
# (B, 1, H, W) or (B, N, 1), or None.
Features = Mapping[str, tuple[Tensor, Tensor, Tensor | None]]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Chosen positions of a feature.

    Args:
        student: (P, C).
        teacher: (P, C).
        weights: (P,), or None for 1.
    """

    student: Tensor
    teacher: Tensor
    weights: Tensor | None = None


class Region:
    """All positions; the base class of other choices."""

    def check(self, student: nn.Module, adapter: object) -> None:
        """Refuse models that the choice does not fit; see subclasses.

        Args:
            student: Prepared model.
            adapter: The teacher's adapter.
        """

    def rows(
        self, scene: Scene, features: Features
    ) -> Iterator[tuple[str, Rows]]:
        """Yield the rows of each feature that has any.

        Args:
            scene: The batch.
            features: Features of both models.
        """
        for name, (student, teacher, weights) in features.items():
            flat = None if weights is None else weights.reshape(-1)
            yield (
                name,
                Rows(
                    student=rows_of(student),
                    teacher=rows_of(teacher),
                    weights=flat,
                ),
            )


class MaskRegion(Region):
    """Base class of regions that are a weight for each cell of a map."""

    def mask(self, scene: Scene, feature: Tensor) -> Tensor:
        """Return the weights of cells, (B, H, W), 0 where left out."""
        raise NotImplementedError

    def rows(
        self, scene: Scene, features: Features
    ) -> Iterator[tuple[str, Rows]]:
        """Yield the rows of the cells that are not 0."""
        for name, (student, teacher, weights) in features.items():
            if student.dim() != 4:
                raise ValueError(
                    f'{name} has the shape {tuple(student.shape)}, but this '
                    'region chooses cells of maps (B, C, H, W): use '
                    "regions='all', or taps='neck'"
                )
            with torch.no_grad():
                mask = self.mask(scene, teacher).reshape(-1)
                if weights is not None:
                    mask = mask * weights.reshape(-1)
                kept = mask > 0
            if not kept.any():
                continue
            yield (
                name,
                Rows(
                    student=rows_of(student)[kept],
                    teacher=rows_of(teacher)[kept],
                    weights=mask[kept],
                ),
            )
