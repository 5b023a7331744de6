"""How much each position of a feature counts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from taskptq.core.settings import Number
from taskptq.methods.db_llm import ambiguity_weights
from taskptq.qat.distillation.scene import Scene

__all__ = ['WEIGHTS', 'Importance', 'fitted']


class Importance:
    """All positions count the same."""

    def of(self, scene: Scene, feature: Tensor) -> Tensor | None:
        """Return the weights of a teacher's feature, mean about 1.

        Args:
            scene: The batch.
            feature: Map (B, C, H, W), or queries (B, N, C).

        Returns:
            (B, 1, H, W) or (B, N, 1); None for 1 everywhere.
        """
        return None


class ForegroundImportance(Importance):
    """Positions count as the teacher is sure of an object there.

    Args:
        floor: Share of the weight that is spread evenly, [0, 1].
    """

    def __init__(self, *, floor: float = 0.0) -> None:
        self.floor = Number(low=0, high=1).read(floor, name='floor')

    def of(self, scene: Scene, feature: Tensor) -> Tensor:
        """Return the weights; see the base class."""
        found = fitted(scene.foreground(), feature, name='foreground')
        share = found / found.mean().clamp(min=1e-12)
        return self.floor + (1 - self.floor) * share


class EntropyImportance(Importance):
    """Positions count as the teacher is undecided there (DB-LLM's idea).

    Args:
        power: Exponent of the entropy, >= 0; 0 weighs all the same.
        eps: Weight of a position without any doubt.
    """

    def __init__(self, *, power: float = 1.0, eps: float = 0.01) -> None:
        self.power = Number(low=0, high=10).read(power, name='power')
        self.eps = Number(low=0, high=1).read(eps, name='eps')

    def of(self, scene: Scene, feature: Tensor) -> Tensor:
        """Return the weights; see the base class."""
        doubt = fitted(scene.doubt(), feature, name='entropy')
        return ambiguity_weights(doubt, power=self.power, eps=self.eps)


WEIGHTS: dict[str, type[Importance]] = {
    'uniform': Importance,
    'foreground': ForegroundImportance,
    'entropy': EntropyImportance,
}


@torch.no_grad()
def fitted(values: Sequence[Tensor], feature: Tensor, *, name: str) -> Tensor:
    """Return the values at the positions of a feature.

    Args:
        values: Maps (B, 1, H, W) and queries (B, N, 1) of a teacher.
        feature: Map (B, C, h, w), or queries (B, n, C).
        name: What needs them, for errors.

    Returns:
        (B, 1, h, w), resized from the map nearest in size, or (B, n, 1): the
        largest of several.

    Raises:
        ValueError: If none fits.
    """
    if feature.dim() == 4:
        maps = [v for v in values if v.dim() == 4 and v.shape[1] == 1]
        if maps:
            return _resized(maps, feature)
    else:
        rows = [v for v in values if v.shape == (*feature.shape[:2], 1)]
        if rows:
            return torch.stack(rows).amax(dim=0)
    raise ValueError(
        f'distillation.views: {name!r} has no value at the positions of a '
        f'feature of shape {tuple(feature.shape)}, since the outputs of this '
        "model are of other ones: use 'uniform' or 'all', or another tap"
    )


def _resized(maps: Sequence[Tensor], feature: Tensor) -> Tensor:
    size = feature.shape[-2:]
    apart = [abs(m.shape[-1] - size[-1]) for m in maps]
    near = [m for m, one in zip(maps, apart, strict=True) if one == min(apart)]
    value = torch.stack([m for m in near if m.shape == near[0].shape]).amax(0)
    if value.shape[-2:] == size:
        return value
    return functional.interpolate(
        value, size=size, mode='bilinear', align_corners=False
    )
