"""Pictures of grid heads are written, and show what they are given."""

import matplotlib.image as plt
import pytest

from taskptq.analysis.bars import plot_distributions, plot_error_scatter

POINTS = [-2.0, -0.5, 0.0, 0.5, 2.0]


def scatter(factor):
    bins = [
        {'predicted': 10.0**-k, 'measured': factor * 10.0**-k, 'count': 5}
        for k in range(4)
    ]
    return {'rounded': {'bins': bins}}


def test_scatter(tmp_path):
    one = plt.imread(
        plot_error_scatter(
            scatter(1.0), tmp_path / 'new' / 'one.png', unit='px'
        )
    )
    two = plt.imread(plot_error_scatter(scatter(3.0), tmp_path / 'two.png'))
    assert one.shape == two.shape
    assert (one != two).any()
    with pytest.raises(ValueError, match='at least one'):
        plot_error_scatter({'a': {'bins': []}}, tmp_path / 'none.png')


def test_distributions(tmp_path):
    box = {
        'float': [[0, 0, 1, 0, 0]] * 4,
        'quantized': [[0, 0.5, 0.5, 0, 0]] * 4,
    }
    one = plt.imread(
        plot_distributions(
            [box], tmp_path / 'a.png', points=POINTS, titles=['first']
        )
    )
    two = plt.imread(
        plot_distributions([box, box], tmp_path / 'b.png', points=POINTS)
    )
    assert two.shape[0] > one.shape[0]
    other = {**box, 'quantized': [[1, 0, 0, 0, 0]] * 4}
    three = plt.imread(
        plot_distributions(
            [other], tmp_path / 'c.png', points=POINTS, titles=['first']
        )
    )
    assert (three != one).any()
    with pytest.raises(ValueError, match='at least one'):
        plot_distributions([], tmp_path / 'none.png', points=POINTS)
