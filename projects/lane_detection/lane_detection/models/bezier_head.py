"""BezierLaneNet: one cubic curve for each column of the feature map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmdet.registry import MODELS
from mmdet.utils import reduce_mean
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from ..geometry import input_lanes
from .bezier import cubic_rows, cut_to_image, fit_cubic, sample_cubic
from .lane_head import SOFT_ROWS, LaneHead, lane_instances, soft_presence
from .resample import falling_points

__all__ = ['BezierLaneHead', 'local_maxima']


@MODELS.register_module()
class BezierLaneHead(LaneHead):
    """Curve-based head of BezierLaneNet (arXiv 2203.02431).

    The map is averaged over its height; its W columns are the queries.
    Outputs: ``logits`` (B, W) and ``curves`` (B, W, 4, 2), control points from
    the bottom upwards, normalized by the input's size, possibly outside it.

    Args:
        in_channels: Channels of the fused map.
        aux_channels: Channels of the backbone's map for an auxiliary
            segmentation in training; None for no such branch.
        num_convs: Number of convolutions along the columns.
        aux_hidden: Channels inside the auxiliary branch.
        loss_weights: Weights of ``curve``, ``logits``, ``seg``.
        positive_weight: Weight of a positive relative to a negative.
        lane_width: Lane width in the auxiliary target, in pixels of the input.
        relative: Make the x of control points relative to the center of the
            query's column. In the paper they are absolute, which convolutions
            along the columns learn slowly.
        train_cfg: ``window``, number of columns that compete in matching;
            ``num_samples`` of the curve loss.
        test_cfg: ``score_thr``, ``window``, ``max_lanes``, ``num_samples`` of
            a lane.
        init_cfg: See mmengine's BaseModule.
    """

    head_names: ClassVar[tuple[str, ...]] = ('logits', 'curves')

    def __init__(
        self,
        *,
        in_channels: int,
        aux_channels: int | None = None,
        num_convs: int = 2,
        aux_hidden: int = 64,
        loss_weights: dict[str, float] | None = None,
        positive_weight: float = 2.5,
        lane_width: float = 8.0,
        relative: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.loss_weights = dict(curve=1.0, logits=0.1, seg=0.75)
        self.loss_weights.update(loss_weights or {})
        self.positive_weight = positive_weight
        self.lane_width = lane_width
        self.relative = relative
        # Convolutions along the columns, of a map that is one row high.
        self.convs = nn.Sequential(
            *[
                ConvModule(
                    in_channels,
                    in_channels,
                    (1, 3),
                    padding=(0, 1),
                    norm_cfg={'type': 'BN'},
                )
                for _ in range(num_convs)
            ]
        )
        self.conv_logits = nn.Conv2d(in_channels, 1, 1)
        self.conv_reg = nn.Conv2d(in_channels, 8, 1)
        self.aux: nn.Sequential | None = None
        if aux_channels is not None:
            self.aux = nn.Sequential(
                ConvModule(
                    aux_channels,
                    aux_hidden,
                    3,
                    padding=1,
                    norm_cfg={'type': 'BN'},
                ),
                nn.Conv2d(aux_hidden, 1, 1),
            )

    def forward(self, feats: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return ``logits`` and ``curves`` of the last map's columns."""
        x = self.convs(feats[-1].mean(dim=2, keepdim=True))  # B x C x 1 x W
        curves = self.conv_reg(x)[:, :, 0].transpose(1, 2)  # B x W x 8
        curves = curves.unflatten(-1, (4, 2))
        if self.relative:
            width = curves.shape[1]
            columns = torch.arange(width).to(curves) + 0.5
            # W x 1 x 2
            curves = curves + F.pad(columns[:, None, None] / width, (0, 1))
        return {'logits': self.conv_logits(x)[:, 0, 0], 'curves': curves}

    def loss(
        self, feats: Sequence[Tensor], data_samples: Sequence[Any]
    ) -> dict[str, Tensor]:
        """Return the losses; the auxiliary branch runs only here."""
        outputs = self(feats)
        if self.aux is not None:
            outputs['seg'] = self.aux(feats[0])
        return self.loss_by_feat(outputs, data_samples)

    def loss_by_feat(
        self, outputs: Mapping[str, Tensor], data_samples: Sequence[Any]
    ) -> dict[str, Tensor]:
        """Return ``loss_curve``, ``loss_logits``, with seg ``loss_seg``."""
        logits, curves = outputs['logits'], outputs['curves']
        labels = torch.zeros_like(logits)
        predicted, goals = [], []
        for i, sample in enumerate(data_samples):
            targets = self._targets(sample).to(curves)
            queries, matched = self._match(logits[i], curves[i], targets)
            labels[i, queries] = 1
            predicted.append(curves[i, queries])
            goals.append(targets[matched])
        losses = {
            'loss_curve': self._curve_loss(predicted, goals)
            * self.loss_weights['curve'],
            'loss_logits': self._binary_loss(logits, labels)
            * self.loss_weights['logits'],
        }
        if 'seg' in outputs:
            masks = np.stack([self._mask(sample) for sample in data_samples])
            seg = F.interpolate(
                outputs['seg'],
                masks.shape[1:],
                mode='bilinear',
                align_corners=True,
            )[:, 0]
            target = torch.from_numpy(masks).to(seg)
            losses['loss_seg'] = (
                self._binary_loss(seg, target) * self.loss_weights['seg']
            )
        return losses

    def _targets(self, sample: Any) -> Tensor:
        """Fit a curve to each lane of an image, (G, 4, 2)."""
        height, width = sample.metainfo['img_shape'][:2]
        size = np.array([width, height], dtype=np.float64)
        curves = []
        for lane in input_lanes(sample):
            points = falling_points(np.asarray(lane)) / size
            if len(points) >= 2:
                curves.append(cut_to_image(fit_cubic(points)))
        found = [curve for curve in curves if curve is not None]
        return torch.stack(found) if found else torch.zeros(0, 4, 2)

    def _samples(self, control: Tensor) -> Tensor:
        return sample_cubic(
            control, num_samples=self.train_cfg.get('num_samples', 100)
        )

    @torch.no_grad()
    def _match(
        self, logits: Tensor, curves: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Assign queries to lanes: the largest sum of qualities.

        quality = [p is a local maximum] p^0.2 max(1 - L1 / 100, 0)^0.8, L1
        summed over the samples of a curve
        """
        queries, lanes = self._samples(curves), self._samples(targets)
        distance = torch.cdist(queries.flatten(1), lanes.flatten(1), p=1)
        likeness = (1 - distance / lanes.shape[1]).clamp(min=0)
        p = logits.sigmoid()
        peaks = local_maxima(p[None], self.train_cfg.get('window', 9))[0]
        quality = (peaks * p**0.2)[:, None] * likeness**0.8
        rows, columns = linear_sum_assignment(
            quality.nan_to_num().cpu().numpy(), maximize=True
        )
        device = logits.device
        return (
            torch.as_tensor(rows, device=device, dtype=torch.long),
            torch.as_tensor(columns, device=device, dtype=torch.long),
        )

    def _curve_loss(
        self, predicted: Sequence[Tensor], goals: Sequence[Tensor]
    ) -> Tensor:
        """Sum of |dx| + |dy|, over samples and matched lanes of all ranks."""
        found = self._samples(torch.cat(list(predicted)))
        wanted = self._samples(torch.cat(list(goals)))
        count = reduce_mean(found.new_tensor(float(len(found)))).clamp(min=1)
        total = (found - wanted).abs().sum()
        return total / (count * found.shape[1])

    def _binary_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross entropy in which a negative counts 1 / positive_weight."""
        weight = logits.new_tensor(self.positive_weight)
        return (
            F.binary_cross_entropy_with_logits(
                logits, target, pos_weight=weight
            )
            / weight
        )

    def _mask(self, sample: Any) -> np.ndarray:
        """Draw all lanes, (h, w), 0 or 1."""
        mask = np.zeros(sample.metainfo['img_shape'][:2], dtype=np.uint8)
        for lane in input_lanes(sample):
            points = np.rint(np.asarray(lane)).clip(-30000, 30000)
            cv2.polylines(
                mask,
                [points.astype(np.int32)],
                False,
                1,
                thickness=max(1, round(self.lane_width)),
            )
        return mask.astype(np.float32)

    def decode(
        self, outputs: Mapping[str, Tensor], metas: Sequence[Mapping[str, Any]]
    ) -> list[InstanceData]:
        """Turn curves into lanes; see ``LaneHead.decode``."""
        scores = outputs['logits'].sigmoid()
        peaks = local_maxima(scores, self.test_cfg.get('window', 9))
        kept = peaks & (scores > self.test_cfg.get('score_thr', 0.95))
        return [
            self._decode_single(
                outputs['curves'][i][kept[i]], scores[i][kept[i]], meta
            )
            for i, meta in enumerate(metas)
        ]

    def _decode_single(
        self, curves: Tensor, scores: Tensor, meta: Mapping[str, Any]
    ) -> InstanceData:
        best = scores.argsort(descending=True, stable=True)
        best = best[: self.test_cfg.get('max_lanes', 4)]
        samples = sample_cubic(
            curves[best], num_samples=self.test_cfg.get('num_samples', 50)
        )
        height, width = meta['img_shape'][:2]
        size = samples.new_tensor([width, height])
        lanes = []
        for lane in samples:
            lane = lane[((lane >= 0) & (lane <= 1)).all(-1)] * size
            if len(lane) and lane[0, 1] < lane[-1, 1]:
                lane = lane.flip(0)
            lanes.append(lane)
        return lane_instances(lanes, scores=scores[best], meta=meta)

    def soft_lines(
        self, outputs: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return x at rows, (B, W, R), and each query's presence."""
        return (
            cubic_rows(outputs['curves'].float(), num_rows=SOFT_ROWS),
            soft_presence(
                outputs['logits'].float(),
                score_thr=self.test_cfg.get('score_thr', 0.95),
            ),
        )

    def foreground_proxy(
        self, outputs: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return each query's probability: (B, W), and (B, W, 1, 1)."""
        weight = outputs['logits'].detach().sigmoid()
        return {'logits': weight, 'curves': weight[..., None, None]}


def local_maxima(scores: Tensor, window: int) -> Tensor:
    """Return which columns are local maxima.

    Args:
        scores: (B, W).
        window: Odd number of columns.

    Returns:
        (B, W), bool. Of equal maxima only the first counts.
    """
    columns = torch.arange(scores.shape[-1], device=scores.device)
    _, index = F.max_pool1d(
        scores[:, None],
        window,
        stride=1,
        padding=window // 2,
        return_indices=True,
    )
    return index[:, 0] == columns
