"""The challenge's data: drone images of disasters, 14 classes, 512 x 512."""

from __future__ import annotations

from typing import Any, ClassVar

from mmseg.datasets import BaseSegDataset
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.registry import DATASETS, TRANSFORMS

__all__ = ['CLASSES', 'LPCVCDataset', 'LoadLPCVCAnnotations']

CLASSES = (
    'background',
    'avalanche',
    'building_undamaged',
    'building_damaged',
    'cracks_fissure_subsidence',
    'debris_mud_rock_flow',
    'fire_flare',
    'flood_water_river_sea',
    'ice_jam_flow',
    'lava_flow',
    'person',
    'pyroclastic_flow',
    'road_railway_bridge',
    'vehicle',
)
PALETTE = [
    [0, 0, 0],
    [240, 240, 255],
    [70, 70, 70],
    [190, 90, 60],
    [110, 60, 20],
    [140, 110, 70],
    [255, 80, 0],
    [40, 110, 220],
    [150, 220, 240],
    [200, 0, 0],
    [255, 200, 180],
    [120, 100, 120],
    [128, 64, 128],
    [0, 0, 142],
]


@DATASETS.register_module()
class LPCVCDataset(BaseSegDataset):
    """Images and label maps of the same names, PNG.

    A label is the class itself; no class is ignored, and values of 14 and
    more are void. Arguments are those of mmseg's BaseSegDataset, with
    ``data_prefix=dict(img_path=..., seg_map_path=...)``.
    """

    METAINFO: ClassVar = {'classes': CLASSES, 'palette': PALETTE}

    def __init__(
        self,
        *,
        img_suffix: str = '.png',
        seg_map_suffix: str = '.png',
        reduce_zero_label: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(
            img_suffix=img_suffix,
            seg_map_suffix=seg_map_suffix,
            reduce_zero_label=reduce_zero_label,
            **options,
        )


@TRANSFORMS.register_module()
class LoadLPCVCAnnotations(LoadAnnotations):
    """Reads labels of one channel, or of three that are the same.

    Arguments are those of mmseg's LoadAnnotations.

    Raises:
        ValueError: If the channels differ, as in a colored map.
    """

    def _load_seg_map(self, results: dict[str, Any]) -> None:
        """Load a label map."""
        super()._load_seg_map(results)
        label = results['gt_seg_map']
        if label.ndim == 2:
            return
        if (label[..., :3] != label[..., :1]).any():
            raise ValueError(
                f'{results["seg_map_path"]} is a colored map: give one whose '
                'values are the classes'
            )
        results['gt_seg_map'] = label[..., 0]
