"""Segmentation of lanes with one class per slot, and existence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from mmdet.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn import functional

from ..geometry import to_input
from .lane_head import LaneHead, lane_instances
from .segmentation_targets import IGNORED, segmentation_targets

__all__ = ['SegmentationHead', 'SegmentationTesting', 'SegmentationTraining']


@dataclass(frozen=True, kw_only=True)
class SegmentationTraining:
    """Settings of a SegmentationHead's ``train_cfg``.

    Args:
        seg_loss: 'cross_entropy' (SCNN) or 'dice' (RESA).
        seg_weight: Weight of that loss.
        exist_weight: Weight of the binary cross entropy of existence.
        background_weight: Class weight of the background.
        lane_width: Width of the drawn lanes, in pixels of the original image.
    """

    seg_loss: str = 'cross_entropy'
    seg_weight: float = 1.0
    exist_weight: float = 0.1
    background_weight: float = 0.4
    lane_width: float = 16.0

    def __post_init__(self) -> None:
        if self.seg_loss not in ('cross_entropy', 'dice'):
            raise ValueError(
                f'train_cfg.seg_loss={self.seg_loss!r}: choose '
                "'cross_entropy' or 'dice'"
            )


@dataclass(frozen=True, kw_only=True)
class SegmentationTesting:
    """Settings of a SegmentationHead's ``test_cfg``.

    Args:
        exist_thr: A slot holds a lane above this probability.
        score_thr: A row holds a point above this probability.
        row_step: Distance of the rows, in pixels of the original image.
        blur: Side of the box that smooths probabilities, odd, in pixels of
            the input.
        window: Half width over which the column of a point is averaged by
            probability, in pixels of the input; 0 takes the best column.
    """

    exist_thr: float = 0.5
    score_thr: float = 0.3
    row_step: float = 20.0
    blur: int = 9
    window: int = 8

    def __post_init__(self) -> None:
        if self.blur % 2 == 0:
            raise ValueError(
                f'test_cfg.blur={self.blur} must be odd, so that '
                'the map keeps its size'
            )


@MODELS.register_module()
class SegmentationHead(LaneHead):
    """The head of SCNN and RESA.

    ``seg``, (B, slots + 1, h, w), holds logits of the background and of each
    slot; ``exist``, (B, slots), the logits of a lane in each slot.

    Args:
        in_channels: Channels of the feature map.
        feat_shape: (h, w) of the feature map, which the existence layer needs.
        num_slots: Maximum number of lanes, with fixed places left to right.
        decoder: Config of a module that enlarges the features before the
            segmentation, or None.
        exist_from: Source of existence: 'seg', the segmentation (SCNN), or
            'features' (RESA; required with a decoder).
        hidden_channels: Channels of the existence layers.
        dropout: Dropout before the segmentation.
        train_cfg: Fields of :class:`SegmentationTraining`.
        test_cfg: Fields of :class:`SegmentationTesting`.
        init_cfg: See mmengine's BaseModule.

    Raises:
        ValueError: If ``exist_from`` is unknown or does not fit.
    """

    head_names: ClassVar[tuple[str, ...]] = ('seg', 'exist')

    def __init__(
        self,
        in_channels: int,
        *,
        feat_shape: tuple[int, int],
        num_slots: int = 4,
        decoder: dict[str, Any] | None = None,
        exist_from: str = 'seg',
        hidden_channels: int = 128,
        dropout: float = 0.1,
        train_cfg: dict[str, Any] | None = None,
        test_cfg: dict[str, Any] | None = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(
            train_cfg=train_cfg, test_cfg=test_cfg, init_cfg=init_cfg
        )
        if exist_from not in ('seg', 'features'):
            raise ValueError(
                f"exist_from={exist_from!r}: choose 'seg' or 'features'"
            )
        if decoder is not None and exist_from == 'seg':
            raise ValueError(
                "exist_from='seg' reads the map at feat_shape, but a decoder "
                "enlarges it: choose exist_from='features'"
            )
        self.training_settings = SegmentationTraining(**self.train_cfg)
        self.testing_settings = SegmentationTesting(**self.test_cfg)
        self.num_slots = num_slots
        self.feat_shape = tuple(feat_shape)
        num_classes = num_slots + 1
        self.decoder = None if decoder is None else MODELS.build(decoder)
        width = in_channels if decoder is None else self.decoder.out_channels
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(width, num_classes, 1)
        self.conv_exist = None
        if exist_from == 'features':
            self.conv_exist = nn.Conv2d(in_channels, num_classes, 1)
        cells = (feat_shape[0] // 2) * (feat_shape[1] // 2)
        self.fc_hidden = nn.Linear(num_classes * cells, hidden_channels)
        self.fc_cls = nn.Linear(hidden_channels, num_slots)
        weights = torch.ones(num_classes)
        weights[0] = self.training_settings.background_weight
        self.register_buffer('class_weights', weights, persistent=False)

    def forward(self, feats: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return ``seg`` and ``exist`` of a batch.

        Raises:
            ValueError: If the features have another size than declared.
        """
        x = feats[-1]
        if tuple(x.shape[-2:]) != self.feat_shape:
            raise ValueError(
                f'the features are {tuple(x.shape[-2:])} and not feat_shape='
                f'{self.feat_shape}: set feat_shape by the size of the input '
                'and the stride of the backbone'
            )
        x = self.dropout(x)
        seg = self.conv_seg(x if self.decoder is None else self.decoder(x))
        scores = seg if self.conv_exist is None else self.conv_exist(x)
        pooled = functional.avg_pool2d(scores.softmax(dim=1), 2).flatten(1)
        hidden = functional.relu(self.fc_hidden(pooled))
        return {'seg': seg, 'exist': self.fc_cls(hidden)}

    def loss_by_feat(
        self, outputs: Mapping[str, Tensor], data_samples: Sequence[Any]
    ) -> dict[str, Tensor]:
        """Return ``loss_seg`` and ``loss_exist``."""
        settings = self.training_settings
        seg = outputs['seg']
        masks, exist = segmentation_targets(
            data_samples,
            num_slots=self.num_slots,
            lane_width=settings.lane_width,
        )
        masks = masks.to(seg.device)
        logits = upsampled(seg, tuple(masks.shape[-2:]))
        if settings.seg_loss == 'dice':
            loss_seg = dice_loss(logits, masks)
        else:
            loss_seg = functional.cross_entropy(
                logits, masks, weight=self.class_weights, ignore_index=IGNORED
            )
        loss_exist = functional.binary_cross_entropy_with_logits(
            outputs['exist'], exist.to(seg.device)
        )
        return {
            'loss_seg': settings.seg_weight * loss_seg,
            'loss_exist': settings.exist_weight * loss_exist,
        }

    def decode(
        self, outputs: Mapping[str, Tensor], metas: Sequence[Mapping[str, Any]]
    ) -> list[InstanceData]:
        """Read the best column of each row of each slot that exists."""
        return [
            self._decode_image(seg, exist, meta)
            for seg, exist, meta in zip(
                outputs['seg'].detach(),
                outputs['exist'].detach(),
                metas,
                strict=True,
            )
        ]

    def _decode_image(
        self, seg: Tensor, exist: Tensor, meta: Mapping[str, Any]
    ) -> InstanceData:
        """Decode one image; seg (slots + 1, h, w), exist (slots,)."""
        settings = self.testing_settings
        scores = exist.sigmoid()
        slots = (scores > settings.exist_thr).nonzero().flatten()
        height, width = meta['img_shape'][:2]
        probabilities = upsampled(seg[None], (height, width)).softmax(dim=1)
        lanes = probabilities[:, 1:][:, slots]
        if len(slots):
            lanes = functional.avg_pool2d(
                lanes, settings.blur, stride=1, padding=settings.blur // 2
            )
        rows = sampled_rows(meta, settings.row_step).to(seg.device)
        at_rows = lanes[0][:, rows]  # L x R x W
        best, columns = at_rows.max(dim=-1)
        x = torch.arange(width, device=seg.device)
        near = (x - columns[..., None]).abs() <= settings.window
        weights = at_rows * near
        x = (weights * x).sum(-1) / weights.sum(-1).clamp(min=1e-12)
        # Pixel i covers [i, i + 1).
        points = torch.stack([x, rows.to(x).expand_as(x)], dim=-1) + 0.5
        held = best > settings.score_thr
        return lane_instances(
            [lane[mask] for lane, mask in zip(points, held, strict=True)],
            scores=scores[slots],
            meta=meta,
        )

    def foreground_proxy(
        self, outputs: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Weight ``seg`` by one minus the background's probability.

        All of ``exist`` has the same weight: a slot that becomes occupied
        costs as much as one that becomes empty.
        """
        seg = outputs['seg'].detach()
        return super().foreground_proxy(outputs) | {
            'seg': 1 - seg.softmax(dim=1)[:, :1]
        }


def upsampled(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Return logits at (h, w), bilinear, corners on corners."""
    if tuple(logits.shape[-2:]) == size:
        return logits
    return functional.interpolate(
        logits, size=size, mode='bilinear', align_corners=True
    )


def sampled_rows(meta: Mapping[str, Any], step: float) -> Tensor:
    """Return rows of the input, (R,) int64, from the bottom upwards.

    Args:
        meta: ``metainfo`` of the image.
        step: Their distance, in pixels of the original image.
    """
    _, top, _, bottom = meta['crop']
    y = torch.arange(float(bottom) - 1, float(top), -step)
    points = torch.stack([torch.zeros_like(y), y], dim=-1)
    rows = to_input(points, meta)[:, 1].floor().long()
    rows = rows.clamp(0, int(meta['img_shape'][0]) - 1)
    return rows.unique().flip(0)


def dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Return the mean of 1 - dice over images, background left out.

    ``dice = 2 sum(p t) / (sum(p^2) + sum(t^2))``, all slots of an image
    together. Milletari et al., "V-Net", 3DV 2016.

    Args:
        logits: (B, slots + 1, H, W).
        masks: (B, H, W), class numbers; ``IGNORED`` counts nowhere.
    """
    known = (masks != IGNORED)[:, None]
    target = functional.one_hot(
        masks.masked_fill(masks == IGNORED, 0), logits.shape[1]
    )
    target = (target.movedim(-1, 1)[:, 1:] * known).to(logits).flatten(1)
    prediction = (logits.softmax(dim=1)[:, 1:] * known).flatten(1)
    overlap = (prediction * target).sum(dim=1)
    total = prediction.square().sum(dim=1) + target.square().sum(dim=1)
    return (1 - 2 * overlap / (total + 1e-3)).mean()
