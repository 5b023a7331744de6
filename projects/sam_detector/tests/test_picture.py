import numpy as np
import pytest

pytest.importorskip('matplotlib')

from sam_detector.picture import draw_masks, outline, overlay


def test_overlay_tints_inside_and_outlines():
    image = np.full((8, 8, 3), 100, np.uint8)
    mask = np.zeros((1, 8, 8), bool)
    mask[0, 2:6, 2:6] = True
    assert outline(mask[0]).sum() == 12
    drawn = overlay(image, mask)
    assert (drawn[~mask[0]] == 100).all()
    assert (drawn[mask[0]] != 100).any(axis=1).all()
    assert (drawn[2, 2] != drawn[3, 3]).any()


def test_a_picture_is_written(tmp_path):
    from matplotlib.image import imread

    images = [np.zeros((20, 30, 3), np.uint8), np.zeros((10, 10, 3), np.uint8)]
    masks = [np.ones((2, 20, 30), bool), np.zeros((0, 10, 10), bool)]
    out = tmp_path / 'a' / 'masks.png'
    draw_masks(
        images,
        {'float': masks, 'W4A4': masks},
        out,
        captions={'W4A4': ['IoU 0.9', '']},
    )
    drawn = imread(out)
    assert drawn.shape[1] > drawn.shape[0]
    assert drawn[..., :3].std() > 0.05
    with pytest.raises(ValueError, match=r"masks\['x'\] has 1 entries for 2"):
        draw_masks(images, {'x': masks[:1]}, out)
