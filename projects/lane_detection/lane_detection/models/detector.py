"""A lane detector: backbone, neck, and a head of named tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.model import BaseModel, ImgDataPreprocessor
from torch import Tensor

__all__ = ['LaneDataPreprocessor', 'LaneDetector']


@MODELS.register_module()
class LaneDataPreprocessor(ImgDataPreprocessor):
    """Normalize images of equal size and stack them.

    Lanes are mapped only by crop and input size, so nothing is padded.
    Arguments are those of mmengine's ImgDataPreprocessor.
    """

    def forward(
        self, data: dict[str, Any], training: bool = False
    ) -> dict[str, Any]:
        """Return the batch on the device.

        Args:
            data: ``inputs``, (3, H, W) each or (B, 3, H, W), and
                ``data_samples``.
            training: Whether the batch is for training.

        Raises:
            ValueError: If the images differ in size.
        """
        sizes = {tuple(image.shape[-2:]) for image in data['inputs']}
        if len(sizes) > 1:
            raise ValueError(
                f'the images of a batch have the sizes {sorted(sizes)}: let '
                'the pipeline resize all of them to one (h, w)'
            )
        inputs = data['inputs']
        if isinstance(inputs, Tensor):
            data = dict(data, inputs=list(inputs))
        return dict(super().forward(data, training))


@MODELS.register_module()
class LaneDetector(BaseModel):
    """A backbone, a neck and a :class:`.lane_head.LaneHead`.

    Args:
        backbone: Config of the backbone.
        head: Config of the head; it also receives ``train_cfg`` and
            ``test_cfg``.
        neck: Config of the neck; None passes the backbone's features on.
        data_preprocessor: Config of a LaneDataPreprocessor.
        train_cfg: Settings of the head's loss.
        test_cfg: Settings of the head's ``decode``.
        init_cfg: See mmengine's BaseModule.
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        *,
        head: dict[str, Any],
        neck: dict[str, Any] | None = None,
        data_preprocessor: dict[str, Any] | None = None,
        train_cfg: dict[str, Any] | None = None,
        test_cfg: dict[str, Any] | None = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(
            data_preprocessor=data_preprocessor, init_cfg=init_cfg
        )
        self.backbone = MODELS.build(backbone)
        self.neck = None if neck is None else MODELS.build(neck)
        self.head = MODELS.build(
            dict(head, train_cfg=train_cfg, test_cfg=test_cfg)
        )
        self.train_cfg = train_cfg
        self.test_cfg = test_cfg

    @property
    def head_names(self) -> tuple[str, ...]:
        """Names of the output tensors, in order."""
        return tuple(self.head.head_names)

    def extract_feat(self, inputs: Tensor) -> Sequence[Tensor]:
        """Return the features of a batch, (B, 3, H, W)."""
        feats = self.backbone(inputs)
        if self.neck is not None:
            feats = self.neck(feats)
        return (feats,) if isinstance(feats, Tensor) else tuple(feats)

    def forward(
        self,
        inputs: Tensor,
        data_samples: Sequence[Any] | None = None,
        mode: str = 'tensor',
        *,
        seeds: Any = None,
    ) -> Any:
        """Run the model.

        Args:
            inputs: Normalized images, (B, 3, H, W).
            data_samples: LaneDataSample of each image; optional for 'tensor'.
            mode: 'tensor' returns the named tensors of the head, 'loss' the
                losses by name, 'predict' the samples with ``pred_lanes``.
            seeds: With 'tensor', positions of the instances for heads with
                outputs per instance, so that two models can be compared.

        Raises:
            ValueError: If the mode is unknown or the samples are missing.
        """
        if mode == 'tensor':
            return self.forward_heads(inputs, seeds=seeds)
        if mode not in ('loss', 'predict'):
            raise ValueError(
                f"mode={mode!r}: choose 'tensor', 'loss' or 'predict'"
            )
        if data_samples is None:
            raise ValueError(
                f'mode={mode!r} needs data_samples: give one for each image'
            )
        if mode == 'loss':
            return self.head.loss(self.extract_feat(inputs), data_samples)
        return self.predict(inputs, data_samples)

    def forward_heads(
        self, inputs: Tensor, *, seeds: Any = None
    ) -> dict[str, Tensor]:
        """Return the head's tensors by name; see ``forward``."""
        feats = self.extract_feat(inputs)
        if seeds is None:
            return dict(self.head(feats))
        return dict(self.head(feats, seeds=seeds))

    @torch.no_grad()
    def predict(
        self, inputs: Tensor, data_samples: Sequence[Any]
    ) -> list[Any]:
        """Return the samples, each with ``pred_lanes`` in original pixels."""
        lanes = self.head.predict(self.extract_feat(inputs), data_samples)
        for sample, instances in zip(data_samples, lanes, strict=True):
            sample.pred_lanes = instances
        return list(data_samples)

    def decode(
        self, outputs: Mapping[str, Tensor], metas: Sequence[Mapping[str, Any]]
    ) -> list[Any]:
        """Turn named tensors into lanes; see ``LaneHead.decode``."""
        return list(self.head.decode(outputs, metas))
