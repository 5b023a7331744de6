import pytest
import torch
from scipy.ndimage import distance_transform_cdt

from sam_detector.prompts import Prompts, inner_points, jitter_boxes

BOXES = torch.tensor(
    [[8.0, 16.0, 40.0, 48.0], [0.0, 0.0, 64.0, 64.0], [20.0, 20.0, 24.0, 60.0]]
)


def seed(number):
    return torch.Generator().manual_seed(number)


def test_selection_keeps_what_belongs_together():
    points, labels = torch.rand(3, 2, 2), torch.tensor([[1, 0]] * 3)
    prompts = Prompts(boxes=BOXES, points=points, labels=labels)
    assert len(prompts) == 3
    part = prompts[1:]
    assert len(part) == 2
    assert torch.equal(part.boxes, BOXES[1:])
    assert torch.equal(part.points, points[1:])
    index = torch.tensor([2, 0])
    assert torch.equal(prompts[index].points, points[index])
    assert torch.equal(prompts[index].labels, labels[index])
    alone = Prompts(points=points, labels=labels)[:1]
    assert alone.boxes is None
    assert len(alone) == 1
    assert len(Prompts(boxes=BOXES)[3:]) == 0


@pytest.mark.parametrize(
    ('parts', 'message'),
    [
        ({}, 'prompts have nothing: give boxes'),
        (
            {
                'boxes': torch.zeros(2, 4),
                'points': torch.zeros(3, 1, 2),
                'labels': torch.zeros(3, 1),
            },
            "'boxes': 2, 'points': 3.*as many of",
        ),
        ({'points': torch.zeros(3, 1, 2)}, 'but no labels'),
        (
            {'boxes': torch.zeros(3, 4), 'labels': torch.zeros(3, 1)},
            'but no points',
        ),
    ],
)
def test_incomplete_prompts_are_refused(parts, message):
    with pytest.raises(ValueError, match=message):
        Prompts(**parts)


def test_box_masks_change_sign_at_the_edge():
    masks = Prompts(boxes=BOXES).box_masks(image_size=64, cells=16)
    assert masks.shape == (3, 1, 16, 16)
    # In cells of 4 pixels: x from 2 to 10, y from 4 to 12.
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[4:12, 2:10] = True
    assert torch.equal(masks[0, 0] > 0, expected)
    edge = 10 * torch.tanh(torch.tensor(0.5))
    torch.testing.assert_close(masks[0, 0, 8, 2], edge)
    torch.testing.assert_close(masks[0, 0, 8, 1], -edge)
    torch.testing.assert_close(masks[0, 0, 11, 6], edge)
    torch.testing.assert_close(masks[0, 0, 12, 6], -edge)
    assert (masks[1] > 0).all()
    assert (masks.abs() <= 10).all()
    # One cell wide: the middle is half a cell from both edges.
    torch.testing.assert_close(masks[2, 0, 10, 5], edge)


def test_box_masks_tell_where_in_a_cell_the_edge_lies():
    boxes = torch.tensor(
        [[8.0 + shift, 8.0, 40.0, 40.0] for shift in (0.0, 1.0, 2.0, 3.0)]
    )
    column = Prompts(boxes=boxes).box_masks(image_size=64, cells=16)[
        :, 0, 5, 2
    ]
    depths = torch.tensor([0.5, 0.25, 0.0, -0.25])
    torch.testing.assert_close(column, 10 * torch.tanh(depths))


def test_box_masks_of_no_box():
    none = Prompts(boxes=torch.zeros(0, 4))
    assert none.box_masks(image_size=64, cells=16).shape == (0, 1, 16, 16)
    points = Prompts(points=torch.zeros(1, 1, 2), labels=torch.ones(1, 1))
    with pytest.raises(ValueError, match='no boxes to draw'):
        points.box_masks(image_size=64, cells=16)


def test_jitter_stays_in_its_bounds():
    boxes = torch.tensor([[20.0, 30.0, 60.0, 40.0]]).repeat(4000, 1)
    moved = (
        jitter_boxes(boxes, ratio=0.1, image_size=1000, generator=seed(0))
        - boxes
    )
    sides = torch.tensor([40.0, 10.0, 40.0, 10.0])
    relative = moved / sides
    assert relative.abs().max() <= 0.2 + 1e-6
    # A normal distribution that is clamped at two deviations.
    assert relative.std(dim=0).tolist() == pytest.approx(
        [0.0959] * 4, abs=0.004
    )
    assert relative.mean(dim=0).abs().max() < 0.01
    # Sides move on their own.
    assert torch.corrcoef(relative.T).fill_diagonal_(0).abs().max() < 0.1


def test_jitter_is_clipped_to_the_view():
    boxes = BOXES[1:2].repeat(100, 1)
    moved = jitter_boxes(boxes, ratio=0.1, image_size=64)
    assert moved.min() == 0
    assert moved.max() == 64
    assert (moved[:, 2:] > moved[:, :2]).all()


def test_jitter_follows_the_generator():
    first, again, other = (
        jitter_boxes(BOXES, ratio=0.1, image_size=64, generator=seed(number))
        for number in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    exact = jitter_boxes(BOXES, ratio=0.0, image_size=64)
    assert torch.equal(exact, BOXES)
    assert jitter_boxes(BOXES[:0], ratio=0.1, image_size=64).shape == (0, 4)


def test_the_deepest_pixel():
    masks = torch.zeros(4, 12, 16)
    masks[0, 2:9, 3:10] = 1  # 7 x 7
    masks[1, 1:3, 0:16] = 1  # a bar, and a larger blob
    masks[1, 5:10, 10:15] = 1
    masks[2] = 1  # the image's edge counts as one: rows 5 and 6 are deepest
    masks[3, 7, 4] = 1
    found = inner_points(masks, random=False)
    assert found.tolist() == [[6.5, 5.5], [12.5, 7.5], [5.5, 5.5], [4.5, 7.5]]
    assert torch.equal(inner_points(masks > 0, random=False), found)


def test_the_deepest_pixel_is_that_of_a_distance_transform():
    noise = torch.rand(20, 1, 24, 30, generator=seed(3))
    smooth = torch.nn.functional.avg_pool2d(noise, 7, stride=1, padding=3)
    masks = (
        smooth[:, 0] > smooth.flatten(1).median(dim=1).values[:, None, None]
    )
    for mask, (x, y) in zip(
        masks, inner_points(masks, random=False), strict=True
    ):
        padded = torch.nn.functional.pad(mask, (1, 1, 1, 1)).numpy()
        distance = distance_transform_cdt(padded, 'chessboard')[1:-1, 1:-1]
        assert distance[int(y), int(x)] == distance.max() > 1


def test_random_points_lie_inside():
    masks = torch.zeros(2, 6, 8, dtype=torch.bool)
    masks[0, 1:3, 2:4] = True
    masks[1, 5, 7] = True
    found = torch.stack(
        [
            inner_points(masks, random=True, generator=seed(number))
            for number in range(60)
        ]
    )
    assert {tuple(point) for point in found[:, 0].tolist()} == {
        (2.5, 1.5),
        (3.5, 1.5),
        (2.5, 2.5),
        (3.5, 2.5),
    }
    assert {tuple(point) for point in found[:, 1].tolist()} == {(7.5, 5.5)}
    again = inner_points(masks, random=True, generator=seed(5))
    assert torch.equal(again, found[5])


def test_points_of_empty_masks():
    masks = torch.zeros(2, 6, 8)
    masks[0, 3, 3] = 1
    assert inner_points(masks, random=False).tolist() == [
        [3.5, 3.5],
        [0.5, 0.5],
    ]
    with pytest.raises(ValueError, match=r'masks\[1\] is empty'):
        inner_points(masks, random=True)


@pytest.mark.parametrize('random', [True, False])
def test_points_of_no_masks(random):
    assert inner_points(torch.zeros(0, 6, 8), random=random).shape == (0, 2)
