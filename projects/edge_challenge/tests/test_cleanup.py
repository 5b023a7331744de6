import numpy as np
import pytest
from edge_challenge.cleanup import LabelStatistics, clean_labels


@pytest.fixture
def statistics():
    road = np.zeros((6, 6), int)
    road[:3] = 1
    fire = np.zeros((6, 6), int)
    fire[:2, :3] = 2
    ice = np.full((6, 6), 3)
    ice[0, 0] = 255
    return LabelStatistics.of([road, fire, ice], num_classes=5)


def test_statistics(statistics):
    assert statistics.least_pixels.tolist() == [18, 18, 6, 35, 0]
    assert statistics.together[0, 1:3].all()
    assert not statistics.together[1, 2]


def test_specks_become_background(statistics):
    found = np.zeros((6, 6), int)
    found[:2] = 1
    found[5, 5] = 2
    cleaned = clean_labels(found, statistics)
    assert cleaned[5, 5] == 0
    assert (cleaned[:2] == 1).all()
    assert found[5, 5] == 2


def test_of_classes_that_never_met_the_smaller_goes(statistics):
    found = np.zeros((6, 6), int)
    found[:3] = 1
    found[4:, :2] = 2
    cleaned = clean_labels(found, statistics)
    assert set(np.unique(cleaned)) == {0, 1}
    assert (cleaned[:3] == 1).all()
