"""GANet: key points that vote for the start of their lane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from mmcv.cnn import ConvModule
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor, nn

from .ganet_targets import GANetTargets, encode_lanes
from .heatmaps import keypoint_focal_loss
from .keypoint_grouping import group_points, horizontal_peaks, lane_of_points
from .lane_head import LaneHead, lane_instances
from .point_aggregation import LaneAggregation, aggregation_loss, cell_grid

__all__ = ['DenseBranch', 'GANetHead']


class DenseBranch(BaseModule):
    """A 3x3 and a 1x1 convolution.

    Args:
        channels: Channels of the input.
        out_channels: Channels of the output.
        bias: Initial value of the last bias.
    """

    def __init__(
        self, channels: int, *, out_channels: int, bias: float = 0.0
    ) -> None:
        super().__init__()
        self.hidden = ConvModule(channels, channels, 3, padding=1)
        self.conv_reg = nn.Conv2d(channels, out_channels, 1)
        self.bias = bias

    def init_weights(self) -> None:
        """Set the last bias."""
        super().init_weights()
        nn.init.constant_(self.conv_reg.bias, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply, (B, C, H, W) -> (B, C_out, H, W)."""
        return self.conv_reg(self.hidden(x))


@MODELS.register_module()
class GANetHead(LaneHead):
    """Key-point head of GANet (arXiv 2204.07335).

    Outputs at the stride of the map, all in cells: ``kpt_hm`` (B, 1, H, W),
    logits of a lane point; ``pts_offset`` (B, 2, H, W), dx and dy from the
    point to its lane's start, the lowest point; ``int_offset`` (B, 2, H, W),
    the fractions of x and y within the cell. The heat map of starts is
    omitted, since its loss has weight 0 in the released settings.

    Args:
        in_channels: Channels of the first map.
        stride: Stride of that map.
        aggregation: Arguments of a LaneAggregation before the heat map, or
            None.
        num_points: Number of points of a resampled lane.
        loss_weights: ``hm``, ``int``, ``pts``, ``aux``.
        train_cfg: ``radius`` of the Gaussians, in cells.
        test_cfg: ``score_thr`` of a point; ``cluster_radius`` of starts and
            votes, in cells; ``min_points``, lanes with so few are dropped;
            ``max_points`` to group, best first, which limits the time for a
            broken model.
        init_cfg: See mmengine's BaseModule.
    """

    head_names: ClassVar[tuple[str, ...]] = (
        'kpt_hm',
        'pts_offset',
        'int_offset',
    )

    def __init__(
        self,
        *,
        in_channels: int = 64,
        stride: int = 8,
        aggregation: dict[str, Any] | None = None,
        num_points: int = 45,
        loss_weights: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.stride = stride
        self.num_points = num_points
        self.loss_weights = {'hm': 1.0, 'int': 1.0, 'pts': 0.5, 'aux': 0.2}
        self.loss_weights.update(loss_weights or {})
        self.aggregation = (
            None
            if aggregation is None
            else LaneAggregation(in_channels, **aggregation)
        )
        self.smooth = nn.Conv2d(in_channels, in_channels, 3, padding=1)
        self.kpt_hm = DenseBranch(in_channels, out_channels=1, bias=-2.19)
        self.pts_offset = DenseBranch(in_channels, out_channels=2)
        self.int_offset = DenseBranch(in_channels, out_channels=2)

    def forward(self, feats: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the three maps; only the first feature map is used."""
        return self._maps(feats[0])[0]

    def _maps(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return the outputs, and the points of the aggregation."""
        gathered, points = x, None
        if self.aggregation is not None:
            gathered, points = self.aggregation(x)
        return {
            'kpt_hm': self.kpt_hm(self.smooth(gathered)),
            'pts_offset': self.pts_offset(x),
            'int_offset': self.int_offset(x),
        }, points

    def loss(
        self, feats: Sequence[Tensor], data_samples: Sequence[Any]
    ) -> dict[str, Tensor]:
        """Return the losses, including the aggregation's own."""
        outputs, points = self._maps(feats[0])
        if points is not None:
            outputs['points'] = points
        return self.loss_by_feat(outputs, data_samples)

    def loss_by_feat(
        self, outputs: Mapping[str, Tensor], data_samples: Sequence[Any]
    ) -> dict[str, Tensor]:
        """Return ``loss_hm``, ``loss_int``, ``loss_pts``, ``loss_aux``."""
        heatmap = outputs['kpt_hm']
        targets = [
            encode_lanes(
                sample,
                size=tuple(heatmap.shape[-2:]),
                stride=self.stride,
                num_points=self.num_points,
                radius=self.train_cfg.get('radius', 2),
            )
            for sample in data_samples
        ]
        maps = {
            name: torch.stack(
                [torch.from_numpy(getattr(t, name)) for t in targets]
            ).to(heatmap)
            for name in (*self.head_names, 'mask')
        }
        # The published normalizers: ones of the mask for int_offset, ones in
        # both channels for pts_offset.
        losses = {
            'loss_hm': keypoint_focal_loss(
                heatmap, maps['kpt_hm'], min_positives=3
            ),
            'loss_int': _masked_l1(outputs, maps, 'int_offset'),
            'loss_pts': _masked_l1(outputs, maps, 'pts_offset') / 2,
        }
        if 'points' in outputs:
            losses['loss_aux'] = _auxiliary_loss(outputs['points'], targets)
        return {
            name: loss * self.loss_weights[name.removeprefix('loss_')]
            for name, loss in losses.items()
        }

    def decode(
        self, outputs: Mapping[str, Tensor], metas: Sequence[Mapping[str, Any]]
    ) -> list[InstanceData]:
        """Group points into lanes; see ``LaneHead.decode``."""
        scores = horizontal_peaks(outputs['kpt_hm'].sigmoid())[:, 0]
        grid = cell_grid(*scores.shape[-2:], device=scores.device)
        places = grid + outputs['int_offset']
        votes = grid + outputs['pts_offset']
        return [
            self._decode_single(scores[i], places[i], votes[i], meta)
            for i, meta in enumerate(metas)
        ]

    def _decode_single(
        self,
        scores: Tensor,
        places: Tensor,
        votes: Tensor,
        meta: Mapping[str, Any],
    ) -> InstanceData:
        chosen = self._chosen(scores)
        cells = chosen.flip(-1).cpu().numpy()  # n x (column, row)
        rows, columns = chosen.unbind(-1)
        found = places[:, rows, columns].T.detach().float().cpu().numpy()
        vote = votes[:, rows, columns].T.detach().float().cpu().numpy()
        groups = group_points(
            cells, vote, radius=self.test_cfg.get('cluster_radius', 5.0)
        )
        lanes, confidences = [], []
        for group in groups:
            if len(group) <= max(self.test_cfg.get('min_points', 10), 1):
                continue
            lane = lane_of_points(found[group], rows=cells[group, 1])
            lanes.append(torch.from_numpy(lane * self.stride))
            index = torch.as_tensor(group, device=scores.device)
            confidences.append(scores[rows[index], columns[index]].mean())
        confidence = (
            torch.stack(confidences) if confidences else (scores.new_zeros(0))
        )
        return lane_instances(lanes, scores=confidence, meta=meta)

    def _chosen(self, scores: Tensor) -> Tensor:
        """Return rows and columns of the points, by row, (n, 2)."""
        kept = (scores > self.test_cfg.get('score_thr', 0.4)).nonzero()
        limit = self.test_cfg.get('max_points', 1000)
        if len(kept) > limit:
            values = scores[kept[:, 0], kept[:, 1]]
            best = values.argsort(descending=True, stable=True)[:limit]
            kept = kept[best.sort().values]
        return kept

    def foreground_proxy(
        self, outputs: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the probability of a lane point, (B, 1, H, W)."""
        weight = outputs['kpt_hm'].detach().sigmoid()
        return dict.fromkeys(self.head_names, weight)


def _masked_l1(
    outputs: Mapping[str, Tensor], maps: Mapping[str, Tensor], name: str
) -> Tensor:
    """Return the sum of |error| under the mask over its number of ones."""
    mask = maps['mask'][:, None]
    error = (outputs[name] - maps[name]).abs() * mask
    return error.sum() / (mask.sum() + 1e-4)


def _auxiliary_loss(points: Tensor, targets: Sequence[GANetTargets]) -> Tensor:
    """Return the mean loss over the images with lanes."""
    losses = [
        aggregation_loss(points[i], cells=t.cells, samples=t.samples)
        for i, t in enumerate(targets)
        if t.cells
    ]
    return torch.stack(losses).mean() if losses else points.sum() * 0
