"""Comparing the boxes of two models."""

import contextlib
import io

import numpy as np
import pytest

from taskptq.engine.box_agreement import (
    average_precision,
    bootstrap_ratio,
    coco_of_boxes,
    match_boxes,
    read_boxes,
    write_boxes,
)

pytest.importorskip('pycocotools')
IMAGES = [7, 3, 5, 11, 2, 13]


def drawn_boxes(*, jitter: float, seed: int = 0) -> list[dict]:
    """Boxes of two classes; a jitter moves and loses some."""
    places, moves = np.random.default_rng(seed), np.random.default_rng(1)
    boxes = []
    for image in IMAGES:
        for _ in range(6):
            x, y, width, height = places.uniform(10, 90, size=4).tolist()
            shift = moves.normal(0, jitter, size=2).tolist()
            boxes.append(
                {
                    'image_id': image,
                    'bbox': [x + shift[0], y + shift[1], width, height],
                    'score': float(places.uniform(0.31, 1)),
                    'category_id': int(places.integers(1, 3)),
                }
            )
    return boxes


def truth():
    return coco_of_boxes(
        drawn_boxes(jitter=0), image_ids=IMAGES, min_score=0.3
    )


def test_ap_is_that_of_pycocotools():
    from pycocotools.cocoeval import COCOeval

    coco, boxes = truth(), drawn_boxes(jitter=8)
    with contextlib.redirect_stdout(io.StringIO()):
        official = COCOeval(coco, coco.loadRes(boxes), 'bbox')
        official.evaluate()
        official.accumulate()
        official.summarize()
    own = average_precision(match_boxes(coco, boxes, image_ids=IMAGES))
    assert 0.05 < official.stats[0] < 0.9
    assert own.item() == pytest.approx(official.stats[0], abs=1e-9)


def test_drawing_an_image_twice_is_having_it_twice():
    coco, boxes = truth(), drawn_boxes(jitter=8)
    matches = match_boxes(coco, boxes, image_ids=IMAGES)
    counts = np.array([[1, 1, 1, 1, 1, 1], [3, 0, 0, 0, 0, 0]])
    both = average_precision(matches, counts=counts)
    alone = average_precision(match_boxes(coco, boxes, image_ids=IMAGES[:1]))
    assert both[0] != both[1]
    # Copies follow each other in the ranking, so that precision can only be
    # read at the last of them.
    assert both[1] == pytest.approx(alone.item(), abs=0.02)


def test_interval_is_paired():
    coco = truth()
    exact = match_boxes(coco, drawn_boxes(jitter=0), image_ids=IMAGES)
    moved = match_boxes(coco, drawn_boxes(jitter=6), image_ids=IMAGES)
    assert bootstrap_ratio(moved, moved, num_draws=20) == (1.0, 1.0)
    low, high = bootstrap_ratio(moved, exact, num_draws=50)
    share = average_precision(moved).item()
    assert low < share < high < 1


def test_no_boxes_at_all_are_no_agreement():
    matches = match_boxes(truth(), [], image_ids=IMAGES)
    assert average_precision(matches).item() == 0


def test_files(tmp_path):
    boxes = drawn_boxes(jitter=0)
    write_boxes(boxes, tmp_path / 'a' / 'boxes.json')
    assert read_boxes(tmp_path / 'a' / 'boxes.json') == boxes
    with pytest.raises(FileNotFoundError, match='run BoxDump'):
        read_boxes(tmp_path / 'none.json')
    (tmp_path / 'other.json').write_text('[1]')
    with pytest.raises(ValueError, match='no boxes written by BoxDump'):
        read_boxes(tmp_path / 'other.json')
