import math

import numpy as np
import pytest
from edge_challenge.score import (
    accuracy_of,
    challenge_score,
    class_dice,
    confusion_matrix,
    image_dice,
)
from score_vectors import FOUND, TRUTH


def confusion(truth, found):
    return confusion_matrix(truth, found, num_classes=14)


def test_vectors_of_the_referee():
    dice = class_dice(confusion(TRUTH, FOUND))
    wanted = [0.75, 0.888889, 0.923077, 0, math.nan, 0] + [math.nan] * 8
    assert np.allclose(dice, wanted, atol=1e-6, equal_nan=True)
    assert image_dice(confusion(TRUTH, FOUND)) == pytest.approx(
        0.512393, abs=1e-6
    )


def test_a_stray_pixel_costs_half():
    truth = np.zeros((4, 4), int)
    found = truth.copy()
    found[1, 2] = 1
    stray = image_dice(confusion(truth, found))
    assert stray == pytest.approx(0.483871, abs=1e-6)
    images = [image_dice(confusion(TRUTH, FOUND)), stray]
    assert accuracy_of(images) == pytest.approx(0.498132, abs=1e-6)
    pooled = confusion(TRUTH, FOUND) + confusion(truth, found)
    assert np.nanmean(class_dice(pooled)) == pytest.approx(0.529231, abs=1e-6)


def test_score_of_the_sample_solution():
    found = challenge_score(0.5012694410083339, seconds=0.10817168997446695)
    assert found == pytest.approx(4.634017, abs=1e-6)


def test_void_pixels_do_not_count():
    truth = np.array([[0, 255], [14, 1]])
    found = np.array([[0, 3], [3, 1]])
    assert image_dice(confusion(truth, found)) == 1.0
    void = np.full((2, 2), 255)
    assert math.isnan(image_dice(confusion(void, found)))
    assert accuracy_of([math.nan, 0.5]) == 0.5


def test_refusals():
    with pytest.raises(ValueError, match='cannot be compared'):
        confusion(TRUTH, FOUND[:2])
    with pytest.raises(ValueError, match='there are 14 classes'):
        confusion(TRUTH, FOUND + 12)
    with pytest.raises(ValueError, match='seconds=0'):
        challenge_score(0.5, seconds=0)
    with pytest.raises(ValueError, match='no image has a labelled pixel'):
        accuracy_of([math.nan])
