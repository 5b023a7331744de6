"""Distances between decoded predictions, chosen by name.

A distance is called with the predictions of the float model, those of the
changed model and the metainfo of the images, and returns one non-negative
value per image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from taskptq.core.settings import (
    Number,
    Table,
    Whole,
    check_arguments,
    refuse,
    refusing,
)
from taskptq.methods.selective_focus.head_swaps import Distance, Metas
from taskptq.methods.selective_focus.lane_distortion import (
    lane_distortion_score,
)

__all__ = ['DISTANCES', 'LabelDisagreement', 'LaneDistance', 'build_distance']


class LaneDistance:
    """Lane Distortion Score of each image, in pixels of the original image.

    Args:
        num_rows: Rows at which lanes are compared, evenly spaced over the
            network's crop.
        gamma: Cost of a missing row and highest cost of any row, in pixels.
        tau: Mean distance below which two lanes match, in pixels.
    """

    def __init__(
        self, *, num_rows: int = 36, gamma: float = 30.0, tau: float = 30.0
    ) -> None:
        rule = Whole(low=2, high=1 << 16)
        self.num_rows = rule.read(num_rows, name='num_rows')
        positive = Number(above=0, high=1e6)
        self.gamma = positive.read(gamma, name='gamma')
        self.tau = positive.read(tau, name='tau')

    def __call__(
        self, one: Sequence[Any], two: Sequence[Any], metas: Metas
    ) -> list[float]:
        """Return the score of each image.

        Args:
            one: For each image a list of lanes, (n, 2) of x and y, or an
                object whose ``points`` is such a list.
            two: The same for the other model.
            metas: ``crop`` (x0, y0, x1, y1) or else ``ori_shape`` (h, w) of
                each image.
        """
        return [
            self._score(lanes_of(a), lanes_of(b), meta)
            for a, b, meta in zip(one, two, metas, strict=True)
        ]

    def _score(
        self, one: list[Any], two: list[Any], meta: Mapping[str, Any]
    ) -> float:
        rows = self.rows(meta)
        return lane_distortion_score(
            one, two, rows=rows, gamma=self.gamma, tau=self.tau
        )

    def rows(self, meta: Mapping[str, Any]) -> Any:
        """Return the rows of an image, (R,), from bottom to top."""
        crop = meta.get('crop')
        if crop is None and 'ori_shape' not in meta:
            raise ValueError(
                'LaneDistance needs crop or ori_shape in the metainfo: pack '
                'one of them in the pipeline'
            )
        if crop is None:
            top, bottom = 0, meta['ori_shape'][0]
        else:
            top, bottom = crop[1], crop[3]
        return np.linspace(bottom - 1, top, self.num_rows)


class LabelDisagreement:
    """Share of pixels whose label differs, for label maps."""

    def __call__(
        self, one: Sequence[Tensor], two: Sequence[Tensor], metas: Metas
    ) -> list[float]:
        """Return the share of each image, [0, 1]; maps of equal shape."""
        del metas
        return [
            float((a != b).float().mean())
            for a, b in zip(one, two, strict=True)
        ]


DISTANCES: dict[str, Callable[..., Distance]] = {
    'label_disagreement': LabelDisagreement,
    'lane_distortion': LaneDistance,
}


def lanes_of(image: Any) -> list[Any]:
    """Return the lanes of one decoded image, (n, 2) each."""
    return list(getattr(image, 'points', image))


def build_distance(config: Any) -> Distance:
    """Build a distance.

    Args:
        config: Name of a distance, a dict with its name as ``type`` and its
            settings, or a callable as described above.

    Raises:
        ValueError: If the name is unknown.
    """
    if callable(config) and not isinstance(config, Mapping):
        distance: Distance = config
        return distance
    settings = {'type': config} if isinstance(config, str) else config
    settings = Table(required=('type',)).read(settings, name='distance')
    name = settings.pop('type')
    if not isinstance(name, str) or name not in DISTANCES:
        raise refuse(
            'distance',
            name,
            f'choose one of {", ".join(sorted(DISTANCES))}, or add yours to '
            'taskptq.methods.selective_focus.decoded_distance.DISTANCES',
        )
    check_arguments(DISTANCES[name], settings, name='distance')
    with refusing('distance', config):
        return DISTANCES[name](**settings)
