"""Pictures of lanes, and the hook that writes them."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmdet.registry import HOOKS
from mmengine.structures import InstanceData

from lane_detection.structures import LaneDataSample
from lane_detection.visualization import (
    LaneVisualizationHook,
    draw_lanes,
    draw_sample,
)

LANE = np.array([[40, 90], [60, 50], [70, 10]], dtype=np.float32)


def moved(right):
    return LANE + np.array([right, 0], dtype=np.float32)


def sample_of(path, *, name='clip/a.jpg', frame='original'):
    sample = LaneDataSample(
        metainfo={
            'img_path': str(path),
            'img_id': name,
            'ori_shape': (100, 200),
            'lane_frame': frame,
        }
    )
    sample.gt_lanes = InstanceData(points=[moved(80)], slots=torch.tensor([2]))
    sample.pred_lanes = InstanceData(
        points=[LANE, moved(30)], scores=torch.tensor([0.9, 0.2])
    )
    return sample


@pytest.fixture
def image_file(tmp_path):
    path = tmp_path / 'a.jpg'
    cv2.imwrite(str(path), np.zeros((100, 200, 3), dtype=np.uint8))
    return path


def drawn(picture, lane, scale=1.0):
    """Whether a picture is bright at the middle of a lane."""
    x, y = (lane[1] * scale).astype(int)
    return picture[y - 1 : y + 2, x - 1 : x + 2].max() > 60


def test_draw_lanes_leaves_the_image_alone():
    image = np.zeros((100, 200, 3), dtype=np.uint8)
    picture = draw_lanes(
        image, [moved(50), LANE, LANE[:1]], colors=[(0, 0, 255), (0, 255, 0)]
    )
    assert image.max() == 0
    # Colors go from left to right.
    assert picture[50, 60].tolist() == [0, 0, 255]
    assert picture[50, 110].tolist() == [0, 255, 0]
    far = draw_lanes(image, [np.array([[-1e9, 50], [1e9, 50]])])
    assert far.shape == image.shape


def test_draw_sample(image_file):
    image = cv2.imread(str(image_file))
    sample = sample_of(image_file)
    picture = draw_sample(image, sample)
    assert drawn(picture, LANE)
    assert drawn(picture, moved(30))
    assert drawn(picture, moved(80))
    # An image file of half the size shows the same.
    half = draw_sample(cv2.resize(image, (100, 50)), sample, width=2)
    assert drawn(half, LANE, 0.5)
    strict = draw_sample(image, sample, score_thr=0.5, truth=False)
    assert not drawn(strict, moved(30))
    assert not drawn(strict, moved(80))
    inside = draw_sample(image, sample_of(image_file, frame='input'))
    assert not drawn(inside, moved(80))


def test_hook_writes_what_is_due(image_file, tmp_path):
    hook = HOOKS.build(
        dict(type='LaneVisualizationHook', draw=True, interval=2, max_images=2)
    )
    assert isinstance(hook, LaneVisualizationHook)
    runner = SimpleNamespace(log_dir=str(tmp_path / 'logs'))
    hook.before_test_epoch(runner)
    for i in range(4):
        batch = [
            sample_of(image_file, name=f'clip/{i}_{j}.jpg') for j in range(2)
        ]
        hook.after_test_iter(runner, i, outputs=batch)
    folder = tmp_path / 'logs/lanes/test'
    assert sorted(p.name for p in folder.iterdir()) == [
        'clip_0_0.jpg',
        'clip_1_0.jpg',
    ]
    assert drawn(cv2.imread(str(folder / 'clip_0_0.jpg')), LANE)
    hook.before_val_epoch(runner)
    hook.after_val_iter(runner, 0, outputs=[sample_of(image_file)])
    assert (tmp_path / 'logs/lanes/val/clip_a.jpg').is_file()


def test_hook_draws_nothing_by_default(tmp_path):
    hook = LaneVisualizationHook()
    runner = SimpleNamespace(log_dir=str(tmp_path))
    hook.after_test_iter(runner, 0, outputs=[sample_of('none.jpg')])
    assert list(tmp_path.iterdir()) == []
    hook.draw = True
    with pytest.raises(FileNotFoundError, match='draw=False'):
        hook.after_test_iter(runner, 0, outputs=[sample_of('none.jpg')])
    with pytest.raises(ValueError, match='interval=0'):
        LaneVisualizationHook(interval=0)
