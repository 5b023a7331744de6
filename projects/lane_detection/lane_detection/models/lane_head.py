"""Base class of the lane heads."""

from __future__ import annotations

import math
from abc import ABCMeta, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor

from ..geometry import to_original
from ..proximity import cells_near_lanes, lines_near_lanes, placed_lanes

__all__ = ['SOFT_ROWS', 'LaneHead', 'lane_instances', 'soft_presence']

# Rows at which lines are compared where their gradient is needed.
SOFT_ROWS = 36


class LaneHead(BaseModule, metaclass=ABCMeta):
    """Named output tensors, their loss, and their way back to lanes.

    A subclass lists its tensors in ``head_names``; ``forward`` returns them in
    this order, each with the batch in dimension 0.

    Args:
        train_cfg: Settings of the loss, defined by the subclass.
        test_cfg: Settings of ``decode``, defined by the subclass.
        init_cfg: See mmengine's BaseModule.
    """

    head_names: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        *,
        train_cfg: dict[str, Any] | None = None,
        test_cfg: dict[str, Any] | None = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.train_cfg = dict(train_cfg or {})
        self.test_cfg = dict(test_cfg or {})

    @abstractmethod
    def forward(self, feats: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the named tensors of a batch.

        Args:
            feats: Features of backbone and neck, (B, C, H, W) each.
        """

    @abstractmethod
    def loss_by_feat(
        self, outputs: Mapping[str, Tensor], data_samples: Sequence[Any]
    ) -> dict[str, Tensor]:
        """Return the losses by name; names with ``loss`` are summed.

        Args:
            outputs: Outputs of ``forward``.
            data_samples: LaneDataSample of each image.
        """

    @abstractmethod
    def decode(
        self, outputs: Mapping[str, Tensor], metas: Sequence[Mapping[str, Any]]
    ) -> list[InstanceData]:
        """Convert named tensors to lanes.

        It is pure: it only reads tensors, buffers and settings and calls no
        module, so that tensors of a float model, a quantized model or a
        mixture of both are decoded in the same way.

        Args:
            outputs: Outputs of ``forward``.
            metas: ``metainfo`` of each image.

        Returns:
            For each image, ``points`` (list of (n, 2) arrays, x and y in
            pixels of the original image, from the bottom upwards) and
            ``scores``, (L,).
        """

    def foreground_proxy(
        self, outputs: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return how likely each position of a tensor belongs to a lane.

        Args:
            outputs: Outputs of the float model's ``forward``.

        Returns:
            Detached weights in [0, 1] that broadcast to each tensor; all ones
            by default.
        """
        return {
            name: torch.ones((), device=output.device)
            for name, output in outputs.items()
        }

    def soft_lines(
        self, outputs: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor] | None:
        """Return the lines that queries are, with a gradient.

        Args:
            outputs: Outputs of ``forward``.

        Returns:
            x at R equally spaced rows from the top of the input to its
            bottom, in fractions of its width, (B, Q, R), and the probability
            of a lane, (B, Q) or (B, Q, R); None, as here, if the head has no
            such queries.
        """
        del outputs
        return None

    @torch.no_grad()
    def lane_proximity(
        self, outputs: Mapping[str, Tensor], metas: Sequence[Mapping[str, Any]]
    ) -> dict[str, Tensor]:
        """Return how close each position is to a lane that is decoded.

        Maps by the distance of their cells, queries by that of their lines;
        all ones for other tensors.

        Args:
            outputs: Outputs of the float model's ``forward``.
            metas: ``metainfo`` of each image.

        Returns:
            Weights in [0, 1] that broadcast to each tensor, 1 on a lane.
        """
        found = [
            placed_lanes(image.points, meta, like=outputs[self.head_names[0]])
            for image, meta in zip(
                self.decode(outputs, metas), metas, strict=True
            )
        ]
        lines = self.soft_lines(outputs)
        near = None
        if lines is not None:
            pairs = zip(lines[0], found, strict=True)
            near = torch.stack([lines_near_lanes(*pair) for pair in pairs])
        weights = {}
        for name in self.head_names:
            output = outputs[name]
            if near is not None:
                weights[name] = near[(..., *[None] * (output.dim() - 2))]
            elif output.dim() == 4:
                weights[name] = _maps_near(found, metas, output)
            else:
                weights[name] = output.new_ones(())
        return weights

    def loss(
        self, feats: Sequence[Tensor], data_samples: Sequence[Any]
    ) -> dict[str, Tensor]:
        """Run ``forward`` and return its losses."""
        return self.loss_by_feat(self(feats), data_samples)

    def predict(
        self, feats: Sequence[Tensor], data_samples: Sequence[Any]
    ) -> list[InstanceData]:
        """Run ``forward`` and return the lanes of each image."""
        metas = [sample.metainfo for sample in data_samples]
        return self.decode(self(feats), metas)


def lane_instances(
    lanes: Sequence[Tensor], *, scores: Tensor, meta: Mapping[str, Any]
) -> InstanceData:
    """Pack the lanes of one image, as ``decode`` returns them.

    Args:
        lanes: (n, 2) each, x and y in pixels of the network's input, from the
            bottom upwards. Lanes of fewer than two points are dropped.
        scores: (L,), confidence of each lane.
        meta: ``metainfo`` of the image.

    Returns:
        ``points`` in pixels of the original image, and ``scores``.
    """
    kept = [i for i, lane in enumerate(lanes) if len(lane) >= 2]
    points = [
        np.asarray(
            to_original(lanes[i].detach().cpu().float(), meta),
            dtype=np.float32,
        )
        for i in kept
    ]
    return InstanceData(points=points, scores=scores.detach()[kept])


def soft_presence(logits: Tensor, *, score_thr: float) -> Tensor:
    """Return how likely a lane passes the threshold of decoding, in (0, 1).

    ``sigmoid(logit - logit(score_thr))``: one half at the threshold.

    Args:
        logits: Of the probability that is compared with the threshold.
        score_thr: In (0, 1).
    """
    return (logits - math.log(score_thr / (1 - score_thr))).sigmoid()


def _maps_near(
    lanes: Sequence[Sequence[Tensor]],
    metas: Sequence[Mapping[str, Any]],
    output: Tensor,
) -> Tensor:
    """Return the proximity of a map's cells, (B, 1, H, W)."""
    maps = []
    for image, meta in zip(lanes, metas, strict=True):
        height, width = meta['img_shape'][:2]
        cells = (output.shape[-2], output.shape[-1])
        maps.append(
            cells_near_lanes(image, cells=cells, aspect=height / width)
        )
    return torch.stack(maps)[:, None].to(output.device)
