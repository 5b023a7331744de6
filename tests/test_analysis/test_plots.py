"""The picture of key histograms is drawn, and shows what it is given."""

import pytest
import torch

from taskptq.analysis.distribution import describe_keys
from taskptq.analysis.plots import (
    plot_foreground,
    plot_inter_head,
    plot_intra_head,
    plot_key_histograms,
)

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
    one = read(plot_key_histograms(stages, tmp_path / 'one.png', names=['a']))
    assert both.shape[0] > one.shape[0]
    assert both.shape[1] == one.shape[1]
    swapped = dict(reversed(stages.items()))
    other = read(
        plot_key_histograms(swapped, tmp_path / 'other.png', names=['a'])
    )
    assert other.shape == one.shape
    assert (other != one).any()


def test_refusals(stages, tmp_path):
    with pytest.raises(ValueError, match='at least one of each'):
        plot_key_histograms({}, tmp_path / 'keys.png')
    del stages['centered']['b']
    with pytest.raises(ValueError, match="'centered' has no attention 'b'"):
        plot_key_histograms(stages, tmp_path / 'keys.png')


PROBE = {
    'hm': {'foreground': 2.0, 'background': 1.0, 'num_images': 4},
    'exist': {'foreground': None, 'background': None, 'num_images': 0},
}
SWAPS = {'hm': {'swap_in': 2.0, 'leave_one_out': 0.5}}


def test_bars_of_heads(tmp_path):
    one = read(plot_intra_head(PROBE, tmp_path / 'new' / 'intra.png'))
    other = {**PROBE, 'hm': {'foreground': 1.0, 'background': 2.0}}
    two = read(plot_intra_head(other, tmp_path / 'two.png'))
    assert one.shape == two.shape
    assert (one != two).any()
    single = read(plot_inter_head(SWAPS, tmp_path / 'inter.png', unit='px'))
    assert single.shape[1] < one.shape[1]
    with pytest.raises(ValueError, match='at least one'):
        plot_inter_head({}, tmp_path / 'none.png')


def test_foreground_map(tmp_path):
    weights = torch.zeros(6, 10)
    weights[:, 4] = 1
    image = torch.zeros(12, 20, 3, dtype=torch.uint8).numpy()
    alone = read(plot_foreground({'hm': weights.numpy()}, tmp_path / 'a.png'))
    beside = read(
        plot_foreground(
            {'hm': weights.numpy()}, tmp_path / 'b.png', image=image
        )
    )
    assert beside.shape[1] > alone.shape[1]
    # The ridge is brighter than the rest.
    assert float(alone[..., :3].std()) > 0.1
    with pytest.raises(ValueError, match='at least one'):
        plot_foreground({}, tmp_path / 'none.png')
