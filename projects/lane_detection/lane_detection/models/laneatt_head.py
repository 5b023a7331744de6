"""LaneATT: straight anchors that attend to each other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor, nn

from taskptq.hosts import register_counterpart

from .lane_anchors import border_rays, ray_positions, row_heights
from .lane_head import LaneHead, lane_instances, soft_presence
from .laneatt_targets import LaneRows, encode_lanes, match_anchors
from .line_nms import line_nms
from .quantized import QuantAnchorAttention

__all__ = ['AnchorAttention', 'LaneATTHead']


class AnchorAttention(BaseModule):
    """Mix the features of all anchors with weights predicted by each one.

    Args:
        in_features: Features of an anchor.
        num_anchors: Anchors, N.
    """

    def __init__(self, in_features: int, *, num_anchors: int) -> None:
        super().__init__()
        self.fc_attention = nn.Linear(in_features, num_anchors - 1)

    def forward(self, local: Tensor) -> Tensor:
        """Attend, (B, N, C) -> (B, N, C): each anchor to all others."""
        return self.weights(local) @ local

    def weights(self, local: Tensor) -> Tensor:
        """Return the weights, (B, N, N), rows of sum 1, zero diagonal."""
        batch, count, _ = local.shape
        others = self.fc_attention(local).softmax(-1)  # B x N x (N - 1)
        # N rows of N - 1 numbers are N - 1 rows of N numbers; the diagonal
        # belongs between these rows, apart from its first entry.
        gaps = others.reshape(batch, count - 1, count)
        gaps = F.pad(gaps, (0, 1)).flatten(1)
        return F.pad(gaps, (1, 0)).view(batch, count, count)


register_counterpart(AnchorAttention, QuantAnchorAttention)


@MODELS.register_module()
class LaneATTHead(LaneHead):
    """Anchor-based head of LaneATT (arXiv 2010.12035).

    A lane is a straight ray plus x offsets at equally spaced rows, row 0 at
    the lower border. Outputs: ``cls`` (B, N, 2), logits of background and
    lane; ``reg`` (B, N, 1 + R), number of rows and the offsets in pixels.

    Args:
        in_channels: Channels of the last feature map.
        img_size: (h, w) of the network's input.
        feat_channels: Channels of the features that anchors gather.
        stride: Stride of the last feature map.
        num_rows: R.
        num_side: Origins of anchors on the left and on the right border, each.
        num_bottom: Origins on the lower border.
        anchor_file: JSON list of the anchors to keep, as
            ``python -m lane_detection.select_anchors`` writes it; None keeps
            all.
        loss_cls: ``weight``, ``alpha`` and ``gamma`` of the focal loss.
        init_std: Standard deviation of the layers' initial weights.
        train_cfg: ``positive`` and ``negative``, distances in pixels below
            and above which an anchor counts as such; ``nms``, None or
            ``threshold`` and ``max_keep`` of the suppression that selects the
            trained anchors.
        test_cfg: ``score_thr``, ``nms_thr`` in pixels, ``max_lanes``.
        init_cfg: See mmengine's BaseModule.
    """

    head_names: ClassVar[tuple[str, ...]] = ('cls', 'reg')
    anchors: Tensor
    starts: Tensor
    columns: Tensor
    gathered: Tensor

    def __init__(
        self,
        *,
        in_channels: int,
        img_size: tuple[int, int],
        feat_channels: int = 64,
        stride: int = 32,
        num_rows: int = 72,
        num_side: int = 72,
        num_bottom: int = 128,
        anchor_file: str | None = None,
        loss_cls: dict[str, float] | None = None,
        init_std: float = 1e-3,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.img_size = (int(img_size[0]), int(img_size[1]))
        self.num_rows = num_rows
        self.loss_cls = dict(weight=10.0, alpha=0.25, gamma=2.0)
        self.loss_cls.update(loss_cls or {})
        self.init_std = init_std
        rays = border_rays(num_side=num_side, num_bottom=num_bottom)
        if anchor_file is not None:
            rays = rays[_load_indices(anchor_file, len(rays))]
        self.feat_size = (
            self.img_size[0] // stride,
            self.img_size[1] // stride,
        )
        self._add_anchors(rays, stride)
        features = feat_channels * self.feat_size[0]
        self.conv = nn.Conv2d(in_channels, feat_channels, 1)
        self.attention = AnchorAttention(features, num_anchors=len(rays))
        self.fc_cls = nn.Linear(2 * features, 2)
        self.fc_reg = nn.Linear(2 * features, 1 + num_rows)

    def _add_anchors(self, rays: Tensor, stride: int) -> None:
        """Register the anchors, and where they read features."""
        width = self.img_size[1]
        xs = ray_positions(rays, row_heights(self.num_rows)) * width
        starts = ((1 - rays[:, 1]) * (self.num_rows - 1)).round().long()
        cells_high, cells_wide = self.feat_size
        heights = row_heights(cells_high).flip(0)  # rows of the map, from top
        columns = (ray_positions(rays, heights) * width / stride).round()
        gathered = (columns >= 0) & (columns <= cells_wide)
        columns = columns.clamp(0, cells_wide - 1).long()
        for name, value in (
            ('anchors', xs),
            ('starts', starts),
            ('columns', columns),
            ('gathered', gathered.float()),
        ):
            self.register_buffer(name, value, persistent=False)

    def init_weights(self) -> None:
        """Draw all weights from N(0, init_std^2), with zero biases."""
        super().init_weights()
        for layer in (
            self.conv,
            self.attention.fc_attention,
            self.fc_cls,
            self.fc_reg,
        ):
            nn.init.normal_(layer.weight, std=self.init_std)
            nn.init.zeros_(layer.bias)

    def forward(self, feats: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return ``cls`` and ``reg``; only the last feature map is used."""
        local = self.gather(self.conv(feats[-1]))
        both = torch.cat([self.attention(local), local], dim=-1)
        return {'cls': self.fc_cls(both), 'reg': self.fc_reg(both)}

    def gather(self, x: Tensor) -> Tensor:
        """Return the features along each anchor.

        Args:
            x: (B, C, h', w'), at least as large as ``feat_size``.

        Returns:
            (B, N, C * h), zero where the anchor is outside of the image.
        """
        rows = torch.arange(self.feat_size[0], device=x.device)
        along = x[:, :, rows, self.columns] * self.gathered  # B x C x N x h
        return along.transpose(1, 2).flatten(2)

    def lanes(self, outputs: Mapping[str, Tensor]) -> LaneRows:
        """Return each anchor's lane: x in pixels, and its rows, (B, N, R)."""
        xs = self.anchors + outputs['reg'][..., 1:]
        length = outputs['reg'][..., 0].round()
        rows = torch.arange(self.num_rows, device=xs.device)
        after = rows - self.starts[:, None]  # N x R
        return LaneRows(
            xs=xs, valid=(after >= 0) & (after < length[..., None])
        )

    def loss_by_feat(
        self, outputs: Mapping[str, Tensor], data_samples: Sequence[Any]
    ) -> dict[str, Tensor]:
        """Return ``loss_cls`` and ``loss_reg``, averages over the images."""
        cls_losses, reg_losses = [], []
        for i, sample in enumerate(data_samples):
            self._check_size(sample.metainfo)
            targets = encode_lanes(
                sample,
                num_rows=self.num_rows,
                img_size=self.img_size,
                device=self.anchors.device,
            )
            one = {name: outputs[name][i : i + 1] for name in self.head_names}
            cls_loss, reg_loss = self._loss_single(one, targets)
            cls_losses.append(cls_loss)
            reg_losses.append(reg_loss)
        return {
            'loss_cls': torch.stack(cls_losses).mean()
            * self.loss_cls['weight'],
            'loss_reg': torch.stack(reg_losses).mean(),
        }

    def _loss_single(
        self, outputs: Mapping[str, Tensor], targets: LaneRows
    ) -> tuple[Tensor, Tensor]:
        cls, reg = outputs['cls'][0], outputs['reg'][0]
        trained = self._trained_anchors(outputs)
        labels, matched = match_anchors(
            self.anchors[trained],
            targets,
            starts=self.starts[trained],
            positive=self.train_cfg.get('positive', 15.0),
            negative=self.train_cfg.get('negative', 20.0),
        )
        counted = labels >= 0
        cls_loss = self._focal(cls[trained][counted], labels[counted])
        chosen = trained[labels == 1]
        if len(chosen) == 0:
            return cls_loss, reg.sum() * 0
        goal = self._regression_target(
            reg[chosen], chosen, targets, matched[labels == 1]
        )
        return (cls_loss / len(chosen), F.smooth_l1_loss(reg[chosen], goal))

    @torch.no_grad()
    def _trained_anchors(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """Return the indices of the anchors in the loss."""
        nms = self.train_cfg.get('nms')
        if nms is None:
            return torch.arange(len(self.anchors), device=self.anchors.device)
        lanes = self.lanes(outputs)
        scores = outputs['cls'][0].softmax(-1)[:, 1]
        return line_nms(lanes.xs[0], scores, valid=lanes.valid[0], **nms)

    def _focal(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sum of -alpha (1 - p)^gamma log p of the true class's p."""
        log_p = logits.log_softmax(-1).gather(1, labels[:, None])[:, 0]
        weight = (1 - log_p.exp()) ** self.loss_cls['gamma']
        return -self.loss_cls['alpha'] * (weight * log_p).sum()

    @torch.no_grad()
    def _regression_target(
        self, reg: Tensor, chosen: Tensor, targets: LaneRows, matched: Tensor
    ) -> Tensor:
        """Return targets of positive anchors; rows outside a lane are free."""
        starts = self.starts[chosen]
        rows = torch.arange(self.num_rows, device=reg.device)
        last = (targets.valid * rows).amax(-1)[matched]  # row where it ends
        counted = (rows >= starts[:, None]) & (rows <= last[:, None])
        counted &= targets.known[matched]
        offsets = targets.xs[matched] - self.anchors[chosen]
        goal = reg.detach().clone()
        goal[:, 0] = (last - starts + 1).to(goal)
        goal[:, 1:] = offsets.to(goal).where(counted, goal[:, 1:])
        return goal

    def decode(
        self, outputs: Mapping[str, Tensor], metas: Sequence[Mapping[str, Any]]
    ) -> list[InstanceData]:
        """Turn anchors into lanes; see ``LaneHead.decode``."""
        lanes = self.lanes(outputs)
        scores = outputs['cls'].softmax(-1)[..., 1]
        return [
            self._decode_single(
                LaneRows(xs=lanes.xs[i], valid=lanes.valid[i]), scores[i], meta
            )
            for i, meta in enumerate(metas)
        ]

    def _decode_single(
        self, lanes: LaneRows, scores: Tensor, meta: Mapping[str, Any]
    ) -> InstanceData:
        self._check_size(meta)
        confident = (scores > self.test_cfg.get('score_thr', 0.5)).nonzero()
        confident = confident[:, 0]
        kept = confident[
            line_nms(
                lanes.xs[confident],
                scores[confident],
                valid=lanes.valid[confident],
                threshold=self.test_cfg.get('nms_thr', 50.0),
                max_keep=self.test_cfg.get('max_lanes', 4),
            )
        ]
        heights = row_heights(self.num_rows).to(lanes.xs) * self.img_size[0]
        points = []
        for xs, valid, start in zip(
            lanes.xs[kept], lanes.valid[kept], self.starts[kept], strict=True
        ):
            inside = (xs >= 0) & (xs <= self.img_size[1])
            # An anchor of the side borders continues downwards while it
            # stays in the image.
            below = inside[:start].flip(0).cumprod(0).flip(0).bool()
            shown = valid & inside
            shown[:start] |= below & valid.any()
            points.append(torch.stack([xs[shown], heights[shown]], dim=-1))
        return lane_instances(points, scores=scores[kept], meta=meta)

    def _check_size(self, meta: Mapping[str, Any]) -> None:
        """Refuse an input of another size than the anchors'."""
        size = tuple(meta['img_shape'][:2])
        if size != self.img_size:
            raise ValueError(
                f"head.img_size={self.img_size}, but the pipeline's input is "
                f'{size}: set both to the same'
            )

    def soft_lines(
        self, outputs: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return x of each anchor's lane, and its presence, row by row.

        Rows are the head's own, (B, N, R). Presence is that of the anchor
        times, after its start, the soft step ``sigmoid(length - row - 1/2)``;
        decoding rounds the length.
        """
        reg, cls = outputs['reg'].float(), outputs['cls'].float()
        xs = self.anchors + reg[..., 1:]
        after = torch.arange(self.num_rows, device=xs.device)
        after = after - self.starts[:, None]  # N x R
        shown = (reg[..., :1] - after - 0.5).sigmoid()
        shown = shown.masked_fill(after < 0, 1.0)
        inside = (xs >= 0) & (xs <= self.img_size[1])
        chance = soft_presence(
            cls[..., 1] - cls[..., 0],
            score_thr=self.test_cfg.get('score_thr', 0.5),
        )
        presence = chance[..., None] * shown * inside
        # The head's first row is the lowest.
        return (xs / self.img_size[1]).flip(-1), presence.flip(-1)

    def foreground_proxy(
        self, outputs: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return each anchor's probability of a lane, (B, N, 1)."""
        weight = outputs['cls'].detach().softmax(-1)[..., 1:]
        return dict.fromkeys(self.head_names, weight)


def _load_indices(path: str, count: int) -> list[int]:
    indices = json.loads(Path(path).read_text())
    if not indices or min(indices) < 0 or max(indices) >= count:
        raise ValueError(
            f'anchor_file={path!r} must list anchors in [0, {count}): make it '
            'with the same num_side and num_bottom'
        )
    return list(indices)
