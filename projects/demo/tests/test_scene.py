import numpy as np
import pytest


def test_an_image_depends_on_its_seed_alone(demo):
    make_image = demo('demo_parts.scene').make_image
    first, parts = make_image(np.random.default_rng((1, 0, 0)))
    again, same_parts = make_image(np.random.default_rng((1, 0, 0)))
    other, _ = make_image(np.random.default_rng((1, 1, 0)))
    assert (first == again).all()
    assert parts == same_parts
    assert (first != other).mean() > 0.5


def test_parts_overlap_little(demo):
    scene = demo('demo_parts.scene')
    for index in range(5):
        _, parts = scene.make_image(np.random.default_rng((1, 0, index)))
        boxes = [box for _, box in parts]
        for number, box in enumerate(boxes):
            for other in boxes[:number]:
                assert scene.overlap(box, other) <= scene.MAX_OVERLAP


def test_overlap_is_of_the_smaller_box(demo):
    overlap = demo('demo_parts.scene').overlap
    assert overlap((0, 0, 10, 10), (5, 0, 10, 4)) == pytest.approx(0.5)
    assert overlap((0, 0, 10, 10), (10, 0, 10, 10)) == 0


def test_a_part_changes_only_its_window(demo):
    scene, shapes = demo('demo_parts.scene'), demo('demo_parts.shapes')
    image = np.full((scene.HEIGHT, scene.WIDTH, 3), 90, dtype=np.float32)
    place = shapes.Placement(
        center=(40.0, 30.0), size=10.0, angle=0.3, ratio=0.5
    )
    window = shapes.window_around(
        place.center,
        radius=10 + scene.MARGIN,
        width=scene.WIDTH,
        height=scene.HEIGHT,
    )
    mask = shapes.part_mask('nut', place, window=window)
    scene.add_part(image, mask, np.random.default_rng(0), window=window)
    changed = (image != 90).any(axis=-1)
    assert changed[30, 47]
    rows, columns = np.nonzero(changed)
    assert rows.min() >= window[0].start
    assert rows.max() < window[0].stop
    assert columns.min() >= window[1].start
    assert columns.max() < window[1].stop
