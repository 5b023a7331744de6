import numpy as np
import pytest


def placement(shapes, **settings):
    defaults = dict(center=(40.0, 30.0), size=12.0, angle=0.0, ratio=0.4)
    return shapes.Placement(**{**defaults, **settings})


def whole(width=80, height=60):
    return slice(0, height), slice(0, width)


@pytest.mark.parametrize('kind', ['bolt', 'nut', 'washer'])
def test_masks_fill_the_box_of_their_size(demo, kind):
    shapes, scene = demo('demo_parts.shapes'), demo('demo_parts.scene')
    mask = shapes.part_mask(kind, placement(shapes), window=whole())
    box = scene.bounding_box(mask, window=whole())
    assert 22 <= box[2] <= 26
    assert 0 < mask.sum() < box[2] * box[3]
    if kind != 'bolt':
        assert mask[30, 40] == 0


@pytest.mark.parametrize('kind', ['bolt', 'nut', 'washer'])
def test_a_window_is_a_cut_of_the_whole_image(demo, kind):
    shapes, scene = demo('demo_parts.shapes'), demo('demo_parts.scene')
    place = placement(shapes, angle=0.7)
    window = shapes.window_around(place.center, radius=16, width=80, height=60)
    cut = shapes.part_mask(kind, place, window=window)
    full = shapes.part_mask(kind, place, window=whole())
    assert cut.shape == (33, 33)
    np.testing.assert_array_equal(cut, full[window])
    assert scene.bounding_box(cut, window=window) == scene.bounding_box(
        full, window=whole()
    )
    np.testing.assert_allclose(
        shapes.shading(kind, place, window=window),
        shapes.shading(kind, place, window=whole())[window],
        rtol=1e-6,
    )


def test_a_window_ends_at_the_image(demo):
    window_around = demo('demo_parts.shapes').window_around
    rows, columns = window_around((2.0, 58.0), radius=9, width=80, height=60)
    assert (rows.start, rows.stop) == (49, 60)
    assert (columns.start, columns.stop) == (0, 12)


def test_shading_tells_the_kinds_apart(demo):
    shapes = demo('demo_parts.shapes')
    place = placement(shapes, angle=0.2)
    levels = {
        kind: len(
            np.unique(shapes.shading(kind, place, window=whole()).round(4))
        )
        for kind in shapes.CLASSES
    }
    assert levels['washer'] == 1
    assert 3 <= levels['nut'] <= 6
    assert levels['bolt'] > 6
