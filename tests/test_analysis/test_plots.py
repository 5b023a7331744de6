"""The picture of key histograms is drawn, and shows what it is given."""

import pytest
import torch

from taskptq.analysis.distribution import describe_keys
from taskptq.analysis.plots import plot_key_histograms

pytest.importorskip('matplotlib')


@pytest.fixture
def stages():
    torch.manual_seed(0)
    shift = torch.tensor([5.0, -5.0])
    keys = {name: torch.randn(400, 2) for name in 'ab'}
    return {
        'float': {k: describe_keys(v + shift) for k, v in keys.items()},
        'centered': {k: describe_keys(v) for k, v in keys.items()},
    }


def read(path):
    from matplotlib.image import imread
    return imread(path)


def test_picture(stages, tmp_path):
    path = plot_key_histograms(stages, tmp_path / 'new' / 'keys.png')
    both = read(path)
    one = read(plot_key_histograms(
        stages, tmp_path / 'one.png', names=['a']))
    assert both.shape[0] > one.shape[0]
    assert both.shape[1] == one.shape[1]
    swapped = dict(reversed(stages.items()))
    other = read(plot_key_histograms(
        swapped, tmp_path / 'other.png', names=['a']))
    assert other.shape == one.shape
    assert (other != one).any()


def test_refusals(stages, tmp_path):
    with pytest.raises(ValueError, match='at least one of each'):
        plot_key_histograms({}, tmp_path / 'keys.png')
    del stages['centered']['b']
    with pytest.raises(ValueError, match="'centered' has no attention 'b'"):
        plot_key_histograms(stages, tmp_path / 'keys.png')
