import pytest
import torch
from torch import nn

from taskptq.analysis.sensitivity.signals import reading, signals_of

NOISE = 0.01


def sums(scales, *, count=1000):
    """Normal channels of some scales under the same noise."""
    generator = torch.Generator().manual_seed(0)
    shape = (len(scales), count)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    x = x * torch.tensor(scales, dtype=torch.float64)[:, None]
    noise = torch.full_like(x, NOISE)
    return torch.stack([t.sum(dim=1) for t in (x, x**2, noise**2)])


def found(scales, layer=None, **options):
    return signals_of(
        sums(scales),
        count=1000 * len(scales),
        ends=(-3.0, 4.0),
        codes_used=0.5,
        reader=None if layer is None else reading(layer),
        **options,
    )


def test_small_channels_matter_where_they_are_read_alone():
    scales = [100.0, 0.01, 0.01, 0.01]
    dense, alone = nn.Conv2d(4, 6, 3), nn.Conv2d(4, 4, 3, groups=4)
    assert found(scales, dense).effective_bits > 10
    # 80, 0, 0 and 0 dB.
    expected = (20 - 1.76) / 6.02
    bits = found(scales, alone).effective_bits
    assert bits == pytest.approx(expected, abs=0.1)
    assert found(scales, by_channel=True).effective_bits == bits


def test_a_layer_may_read_only_small_channels():
    layer = nn.Linear(2, 3)
    with torch.no_grad():
        layer.weight[:, 0] = 0
    assert found([100.0, 1.0], layer).effective_bits == pytest.approx(
        (40 - 1.76) / 6.02, abs=0.1
    )


def test_decibel_and_peak():
    one = found([1.0])
    assert one.sqnr_db == pytest.approx(40, abs=0.3)
    assert one.peak_to_std == pytest.approx(4, rel=0.1)
    assert one.codes_used == 0.5


def test_dead_and_noiseless_tensors_are_finite():
    nothing = signals_of(
        torch.zeros(3, 4), count=8, ends=(0.0, 0.0), codes_used=1.0
    )
    assert nothing.sqnr_db == 200
    assert nothing.peak_to_std == 0
    dead = found([1.0, 0.0], nn.Conv2d(2, 2, 1, groups=2))
    assert dead.effective_bits == pytest.approx(
        found([1.0]).effective_bits, abs=0.05
    )


@pytest.mark.parametrize(
    ('layer', 'shape'),
    [
        (nn.Linear(3, 5), (1, 5, 3)),
        (nn.Conv2d(4, 6, 3, groups=2), (2, 3, 2)),
        (nn.LayerNorm(4), None),
        (nn.ReLU(), None),
    ],
)
def test_reading(layer, shape):
    read = reading(layer)
    assert (None if read is None else tuple(read.shape)) == shape


def test_readers_of_other_sizes_are_ignored():
    assert found([1.0, 1.0], nn.Linear(3, 3)) == found([1.0, 1.0])
