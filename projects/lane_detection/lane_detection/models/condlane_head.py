"""CondLaneNet: each lane has its own convolution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ..proximity import LANE_WIDTH, proximity
from .condlane_maps import (
    dynamic_maps,
    expected_column,
    heatmap_peaks,
    with_coordinates,
)
from .condlane_targets import CondLaneTargets, encode_lanes
from .ganet_head import DenseBranch
from .heatmaps import keypoint_focal_loss
from .lane_head import LaneHead, lane_instances

__all__ = ['CondLaneHead', 'RowRange', 'dynamic_maps', 'heatmap_peaks']


class RowRange(BaseModule):
    """Predict from each row of a lane's map whether the lane has that row.

    Args:
        width: Width of the map, in cells.
        hidden: Number of hidden features.
    """

    def __init__(self, width: int, *, hidden: int = 64) -> None:
        super().__init__()
        self.fc_hidden = nn.Linear(width, hidden)
        self.fc_reg = nn.Linear(hidden, 2)

    def forward(self, mask: Tensor) -> Tensor:
        """Return logits of no and yes, (..., H, W) -> (..., 2, H)."""
        logits: Tensor = self.fc_reg(self.fc_hidden(mask).relu())
        return logits.transpose(-2, -1)


@MODELS.register_module()
class CondLaneHead(LaneHead):
    """Conditional head of CondLaneNet (arXiv 2105.05003).

    Outputs: ``hm`` (B, 1, h, w), logits of a lane's start, at the stride of
    the second map; ``params`` (B, 2 (C + 3), h, w), weights and biases of two
    1x1 convolutions over the C features and two coordinates of the first map;
    and, for each of K seeds, the outputs of those convolutions at the stride
    of the first map: ``mask`` (B, K, H, W), whose softmax over a row locates
    the column, ``reg`` (B, K, H, W), cells from a column to the lane, and
    ``range`` (B, K, 2, H), logits of a row being absent or present.

    Seeds are the K highest peaks of ``hm``, regardless of their height, so
    that all images have equally many; ``decode`` drops the weak ones. They
    are returned as ``seeds`` (B, K), flat cells of ``hm``, which are not a
    head. To compare a quantized model with its float model, pass the float
    model's seeds to it. The product of parameters and features is a matmul of
    two activations; it stays float when the convolutions are quantized.

    Args:
        img_size: (h, w) of the network's input.
        in_channels: Channels of both maps.
        strides: Strides of the first and the second map.
        mask_channels: C.
        num_mask_convs: Number of convolutions before the dynamic ones.
        num_seeds: K.
        loss_weights: ``hm``, ``reg``, ``location``, ``range``.
        train_cfg: ``radius`` of the Gaussians, in cells of the second map;
            ``reg_radius``, number of columns next to a lane that train
            ``reg``.
        test_cfg: ``score_thr`` of a seed; ``seed_distance`` in cells of the
            second map, within which only the best seed is kept.
        init_cfg: See mmengine's BaseModule.
    """

    head_names: ClassVar[tuple[str, ...]] = (
        'hm',
        'params',
        'mask',
        'reg',
        'range',
    )

    def __init__(
        self,
        *,
        img_size: tuple[int, int],
        in_channels: int = 64,
        strides: tuple[int, int] = (8, 16),
        mask_channels: int = 64,
        num_mask_convs: int = 3,
        num_seeds: int = 8,
        loss_weights: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.stride, self.seed_stride = strides
        self.num_seeds = num_seeds
        self.loss_weights = {
            'hm': 1.0,
            'reg': 0.4,
            'location': 1.0,
            'range': 1.0,
        }
        self.loss_weights.update(loss_weights or {})
        widths = [in_channels] + [mask_channels] * num_mask_convs
        self.mask_convs = nn.Sequential(
            *[
                ConvModule(
                    before, after, 3, padding=1, norm_cfg={'type': 'BN'}
                )
                for before, after in pairwise(widths)
            ]
        )
        self.hm = DenseBranch(in_channels, out_channels=1, bias=-2.19)
        self.params = DenseBranch(
            in_channels, out_channels=2 * (mask_channels + 3)
        )
        self.row_range = RowRange(-(-int(img_size[1]) // self.stride))

    def forward(
        self, feats: Sequence[Tensor], *, seeds: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the heads and the seeds.

        Args:
            feats: Maps at both strides, finer first.
            seeds: (B, K), flat cells for the conditional heads; None uses the
                highest peaks.
        """
        outputs = self._dense(feats)
        features = outputs.pop('features')
        if seeds is None:
            seeds = heatmap_peaks(outputs['hm'], count=self.num_seeds)
        mask, reg = dynamic_maps(features, _at_cells(outputs['params'], seeds))
        return {
            **outputs,
            'mask': mask,
            'reg': reg,
            'range': self.row_range(mask),
            'seeds': seeds,
        }

    def _dense(self, feats: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return ``hm``, ``params`` and the ``features`` they act on."""
        return {
            'hm': self.hm(feats[1]),
            'params': self.params(feats[1]),
            'features': with_coordinates(self.mask_convs(feats[0])),
        }

    def loss(
        self, feats: Sequence[Tensor], data_samples: Sequence[Any]
    ) -> dict[str, Tensor]:
        """Return the losses, with conditional heads at the lanes' starts."""
        return self.loss_by_feat(self._dense(feats), data_samples)

    def loss_by_feat(
        self, outputs: Mapping[str, Tensor], data_samples: Sequence[Any]
    ) -> dict[str, Tensor]:
        """Return ``loss_hm``, ``loss_reg``, ``loss_location``, ``loss_range``.

        Args:
            outputs: ``hm``, ``params`` and ``features``, (B, C + 2, H, W).
            data_samples: LaneDataSample of each image.
        """
        hm, features = outputs['hm'], outputs['features']
        targets = [
            encode_lanes(
                sample,
                size=tuple(features.shape[-2:]),
                stride=self.stride,
                seed_size=tuple(hm.shape[-2:]),
                seed_stride=self.seed_stride,
                radius=self.train_cfg.get('radius', 6),
            )
            for sample in data_samples
        ]
        heatmap = torch.stack([torch.from_numpy(t.heatmap) for t in targets])
        losses = {'loss_hm': keypoint_focal_loss(hm, heatmap[:, None].to(hm))}
        losses.update(self._lane_losses(outputs, targets))
        return {
            name: loss * self.loss_weights[name.removeprefix('loss_')]
            for name, loss in losses.items()
        }

    def _lane_losses(
        self, outputs: Mapping[str, Tensor], targets: Sequence[CondLaneTargets]
    ) -> dict[str, Tensor]:
        masks, regs = [], []
        for i, target in enumerate(targets):
            seeds = torch.from_numpy(target.seeds).to(outputs['hm'].device)
            params = _at_cells(outputs['params'][i : i + 1], seeds[None])
            mask, reg = dynamic_maps(outputs['features'][i : i + 1], params)
            masks.append(mask[0])
            regs.append(reg[0])
        mask, reg = torch.cat(masks), torch.cat(regs)  # L x H x W
        places = torch.cat([torch.from_numpy(t.xs) for t in targets])
        places = places.to(mask)  # L x H
        present = places.isfinite()
        columns = torch.arange(mask.shape[-1], device=mask.device)
        distance = places[..., None] - columns
        near = distance.abs() <= self.train_cfg.get('reg_radius', 3)
        logits = self.row_range(mask)
        return {
            'loss_reg': _mean((reg - distance).abs(), near),
            'loss_location': _mean(
                (expected_column(mask) - places).abs(), present
            ),
            'loss_range': _mean(
                F.cross_entropy(logits, present.long(), reduction='none'),
                torch.ones_like(present),
            ),
        }

    def decode(
        self, outputs: Mapping[str, Tensor], metas: Sequence[Mapping[str, Any]]
    ) -> list[InstanceData]:
        """Turn the heads into lanes; see ``LaneHead.decode``.

        The column of a row is the integer part of its expectation; ``reg`` at
        that column adds the rest. A lane extends from one row below its first
        present row to one above its last.
        """
        column = expected_column(outputs['mask']).long()
        reg = outputs['reg'].gather(-1, column[..., None])[..., 0]
        places = (column + reg) * self.stride  # B x K x H
        present = outputs['range'].argmax(dim=2) == 1
        scores = self._seed_scores(outputs)
        return [
            self._decode_single(
                places[i],
                present[i],
                scores[i],
                self._kept(scores[i], outputs, i),
                meta,
            )
            for i, meta in enumerate(metas)
        ]

    def _seed_scores(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """Return the confidence of each seed, (B, K)."""
        at_seeds = outputs['hm'].flatten(1).gather(1, outputs['seeds'])
        return at_seeds.sigmoid()

    def _kept(
        self, scores: Tensor, outputs: Mapping[str, Tensor], image: int
    ) -> list[int]:
        """Return the seeds of one image that are lanes, best first."""
        width = outputs['hm'].shape[-1]
        seeds = outputs['seeds'][image]
        places = torch.stack([seeds % width, seeds // width], dim=-1).float()
        gaps = torch.cdist(places, places).tolist()
        limit = self.test_cfg.get('seed_distance', 4.0)
        values = scores.tolist()
        kept: list[int] = []
        for i in scores.argsort(descending=True, stable=True).tolist():
            if values[i] > self.test_cfg.get('score_thr', 0.5) and all(
                gaps[i][j] > limit for j in kept
            ):
                kept.append(i)
        return kept

    def _decode_single(
        self,
        places: Tensor,
        present: Tensor,
        scores: Tensor,
        kept: list[int],
        meta: Mapping[str, Any],
    ) -> InstanceData:
        height = places.shape[-1]
        heights = (
            torch.arange(height, device=places.device) + 0.5
        ) * self.stride
        lanes = []
        for i in kept:
            rows = present[i].nonzero()[:, 0]
            first = max(int(rows[0]) - 1, 0) if len(rows) else 0
            last = min(int(rows[-1]) + 1, height - 1) if len(rows) else -1
            lane = torch.stack([places[i], heights], dim=-1)
            lanes.append(lane[first : last + 1].flip(0))
        return lane_instances(lanes, scores=scores[kept], meta=meta)

    @torch.no_grad()
    def lane_proximity(
        self, outputs: Mapping[str, Tensor], metas: Sequence[Mapping[str, Any]]
    ) -> dict[str, Tensor]:
        """Return the proximity to what decoding keeps.

        ``hm`` and ``params``, (B, 1, h, w): of cells to the seeds of lanes;
        ``mask`` and ``reg``, (B, K, H, W): of cells to the seed's own lane;
        ``range``, (B, K, 1, 1): whether the seed is a lane.
        """
        del metas
        scores = self._seed_scores(outputs)
        kept = torch.zeros_like(scores)
        for image in range(len(scores)):
            kept[image, self._kept(scores[image], outputs, image)] = 1
        hm, mask = outputs['hm'], outputs['mask']
        wide = hm.shape[-1]
        cells = torch.arange(hm[0, 0].numel(), device=hm.device)
        seeds = outputs['seeds']
        gaps = torch.hypot(
            cells % wide - (seeds % wide)[..., None],
            (cells // wide - (seeds // wide)[..., None]).float(),
        )
        gaps = gaps.masked_fill(kept[..., None] == 0, torch.inf)
        start = proximity(gaps.amin(dim=1), width=1.0).view_as(hm)
        column = expected_column(mask).long()[..., None]
        places = column + outputs['reg'].gather(-1, column)
        columns = torch.arange(mask.shape[-1], device=mask.device) + 0.5
        width = max(LANE_WIDTH * mask.shape[-1], 1.0)
        ridge = proximity(columns - places, width=width)
        kept = kept[..., None, None]
        return {
            'hm': start,
            'params': start,
            'mask': ridge * kept,
            'reg': ridge * kept,
            'range': kept,
        }

    def foreground_proxy(
        self, outputs: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return starts for the dense heads, the seeds' own for the others.

        ``mask`` and ``reg``: the row's softmax times the seed's confidence,
        (B, K, H, W); ``range``: the seed's confidence, (B, K, 1, 1).
        """
        start = outputs['hm'].detach().sigmoid()
        seed = self._seed_scores(outputs).detach()[..., None, None]
        ridge = outputs['mask'].detach().softmax(-1) * seed
        return {
            'hm': start,
            'params': start,
            'mask': ridge,
            'reg': ridge,
            'range': seed,
        }


def _at_cells(maps: Tensor, cells: Tensor) -> Tensor:
    """Gather (B, C, h, w) at flat cells (B, K) -> (B, K, C)."""
    index = cells[:, None].expand(-1, maps.shape[1], -1)
    return maps.flatten(2).gather(2, index).transpose(1, 2)


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """Return the mean over counted values, 0 for none."""
    total = values.where(counted, values.new_zeros(())).sum()
    return total / counted.sum().clamp(min=1)
