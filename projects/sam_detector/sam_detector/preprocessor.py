"""Preprocessor of a SAM detector's two inputs."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.model import BaseDataPreprocessor
from torch import Tensor

from .sam import PIXEL_MEAN, PIXEL_STD

__all__ = ['SAMDataPreprocessor']


@MODELS.register_module()
class SAMDataPreprocessor(BaseDataPreprocessor):
    """Normalize and pad SAM's views; the detector's own handles the image.

    Args:
        image_size: Side of SAM's input, S; other views are refused.
        mean: Mean of each channel, RGB.
        std: Standard deviation of each channel, RGB.
        detector: Config of the detector's data preprocessor; None without a
            detector.
        non_blocking: Copy to the device asynchronously.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        image_size: int = 1024,
        mean: tuple[float, ...] = PIXEL_MEAN,
        std: tuple[float, ...] = PIXEL_STD,
        detector: dict[str, Any] | None = None,
        non_blocking: bool = False,
    ) -> None:
        super().__init__(non_blocking=non_blocking)
        self.image_size = image_size
        for name, value in (('mean', mean), ('std', std)):
            self.register_buffer(
                name, torch.tensor(value).view(3, 1, 1), persistent=False
            )
        self.detector = None if detector is None else MODELS.build(detector)

    def forward(
        self, data: dict[str, Any], training: bool = False
    ) -> dict[str, Any]:
        """Return the batch on the device.

        Args:
            data: ``inputs`` as :class:`.transforms.PackSAMInputs` packs them,
                collated, and ``data_samples``.
            training: Whether the batch is for training.

        Returns:
            ``inputs`` (sam: a list of (V, 3, S, S) per image; img: (B, 3, H,
            W) if there is a detector) and ``data_samples``.

        Raises:
            ValueError: If a view has another size than SAM's input, or
                ``sam_view_sizes`` another length.
        """
        inputs = data['inputs']
        samples = self.cast_data(data.get('data_samples'))
        sizes = [
            getattr(sample, 'sam_view_sizes', None)
            for sample in samples or [None] * len(inputs['sam'])
        ]
        batch: dict[str, Any] = {
            'sam': [
                self.normalize(views, size)
                for views, size in zip(inputs['sam'], sizes, strict=True)
            ]
        }
        if self.detector is not None and 'img' in inputs:
            detected = self.detector(
                {'inputs': list(inputs['img']), 'data_samples': samples},
                training,
            )
            batch['img'] = detected['inputs']
            samples = detected['data_samples']
        return {'inputs': batch, 'data_samples': samples}

    def normalize(self, views: Tensor, sizes: Any) -> Tensor:
        """Normalize views; their padding becomes zero, as in SAM.

        Args:
            views: (V, 3, S, S), uint8.
            sizes: (V, 2), height and width without padding; None for all.
        """
        if tuple(views.shape[-2:]) != (self.image_size, self.image_size):
            raise ValueError(
                f'a view has the shape {tuple(views.shape)}, but image_size='
                f'{self.image_size} of SAMDataPreprocessor: give SAMViews or '
                'ZoomCrop, PackSAMInputs and SAMDataPreprocessor the same'
            )
        views = self.cast_data(views).float()
        views = (views - self.mean) / self.std
        if sizes is None:
            return views
        if len(sizes) != len(views):
            raise ValueError(
                f'sam_view_sizes has {len(sizes)} rows for {len(views)} '
                'views: leave it as SAMViews or ZoomCrop writes it'
            )
        for view, size in zip(views, sizes, strict=True):
            height, width = (int(side) for side in size)
            view[:, height:] = 0
            view[:, :, width:] = 0
        return views
