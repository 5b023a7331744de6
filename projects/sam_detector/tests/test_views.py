import numpy as np
import pytest
import torch
from torch.nn import functional

from sam_detector.views import View, assign_views, paste_masks, read_views

WHOLE = View(x=0, y=0, width=100, height=80, valid_width=64, valid_height=51)
TILE = View(x=20, y=10, width=32, height=32, valid_width=64, valid_height=64)


def published(logits, view, *, frame, image_shape):
    """SAM's own post-processing, put into the image."""
    upsampled = functional.interpolate(
        logits[:, None], size=(frame, frame), mode='bilinear'
    )
    valid = upsampled[..., : view.valid_height, : view.valid_width]
    region = functional.interpolate(
        valid, size=(view.height, view.width), mode='bilinear'
    )[:, 0]
    image = torch.full((len(logits), *image_shape), -1.0)
    image[:, view.y : view.y + view.height, view.x : view.x + view.width] = (
        region
    )
    return image


@pytest.mark.parametrize('view', [WHOLE, TILE])
def test_points_and_boxes_return(view):
    points = torch.rand(5, 3, 2) * 100
    torch.testing.assert_close(view.to_image(view.to_view(points)), points)
    boxes = torch.tensor([[20.0, 10.0, 36.0, 42.0]])
    found = TILE.boxes_to_view(boxes)
    assert found.tolist() == [[0.0, 0.0, 32.0, 64.0]]


@pytest.mark.parametrize('view', [WHOLE, TILE])
def test_paste_equals_the_published_way(view):
    smooth = functional.interpolate(
        torch.randn(6, 1, 4, 4), size=(16, 16), mode='bicubic'
    )[:, 0]
    logits = torch.cat(
        [smooth, torch.randn(2, 16, 16), torch.full((1, 16, 16), -3.0)]
    )
    expected = published(logits, view, frame=64, image_shape=(80, 100))
    masks = paste_masks(logits, view, frame=64, image_shape=(80, 100))
    assert masks.dtype == torch.bool
    # Float arithmetic may differ at pixels that are exactly on the edge.
    sure = expected.abs() > 1e-5
    assert torch.equal(masks[sure], (expected > 0)[sure])
    assert masks[:6].any(dim=(1, 2)).all()
    assert not masks[-1].any()


def test_paste_follows_the_threshold():
    logits = torch.randn(3, 16, 16)
    expected = published(logits, TILE, frame=64, image_shape=(80, 100))
    masks = paste_masks(
        logits, TILE, frame=64, image_shape=(80, 100), threshold=0.5
    )
    sure = (expected - 0.5).abs() > 1e-5
    assert torch.equal(masks[sure], (expected > 0.5)[sure])


def test_paste_of_nothing():
    masks = paste_masks(
        torch.zeros(0, 16, 16), WHOLE, frame=64, image_shape=(80, 100)
    )
    assert masks.shape == (0, 80, 100)


def tile(x, y, side=32):
    return View(
        x=x, y=y, width=side, height=side, valid_width=64, valid_height=64
    )


def test_prompts_go_to_the_most_central_tile():
    views = [tile(0, 0), tile(24, 0), tile(48, 0), WHOLE]
    boxes = torch.tensor(
        [
            [10.0, 10.0, 20.0, 20.0],  # only in the first
            [26.0, 10.0, 31.5, 20.0],  # in two, nearer to the second
            [0.0, 0.0, 30.0, 30.0],  # at the image's corner: no growth there
            [24.5, 5.0, 55.5, 20.0],  # grown by 1.5 it leaves the second
            [60.0, 50.0, 70.0, 70.0],  # in no tile
        ]
    )
    assert assign_views(boxes, views).tolist() == [0, 1, 0, 3, 3]
    assert assign_views(boxes[3:4], views, margin=0.0).tolist() == [1]


def test_without_tiles_all_prompts_go_to_the_whole():
    assert assign_views(torch.rand(4, 4), [WHOLE]).tolist() == [0] * 4
    assert assign_views(torch.zeros(0, 4), [tile(0, 0), WHOLE]).shape == (0,)


def test_views_are_read_as_the_pipeline_writes_them():
    from sam_detector.transforms import SAMViews

    image = np.zeros((80, 100, 3), np.uint8)
    results = SAMViews(image_size=64, zoom=2.0).transform({'img': image})
    views = read_views(results)
    assert views[-1] == WHOLE
    assert len(views) > 4
    for view in views[:-1]:
        assert (view.width, view.height) == (32, 32)
        assert (view.valid_width, view.valid_height) == (64, 64)
    covered = np.zeros((80, 100), bool)
    for view in views[:-1]:
        covered[view.y : view.y + 32, view.x : view.x + 32] = True
    assert covered.all()


def test_missing_views_are_named():
    with pytest.raises(ValueError, match=r"no 'sam_views'.*SAMViews"):
        read_views({'ori_shape': (3, 4)})
    with pytest.raises(ValueError, match='1 rows and sam_view_sizes 2'):
        read_views(
            {'sam_views': [(0, 0, 1, 1)], 'sam_view_sizes': [(1, 1), (2, 2)]}
        )
