import pytest
import torch

from taskptq.core import QuantSpec, search
from taskptq.core.search import search_range


def test_chunks_change_nothing(monkeypatch):
    values = torch.randn(6, 200)
    spec = QuantSpec(num_bits=3)
    whole = search_range(values, spec=spec, signed=True)
    monkeypatch.setattr(search, 'CHUNK_ELEMENTS', 1300)
    parts = search_range(values, spec=spec, signed=True)
    for one, two in zip(whole, parts, strict=True):
        assert torch.equal(one, two)


def test_channels_are_independent():
    values = torch.randn(6, 200) * torch.logspace(-3, 3, 6)[:, None]
    spec = QuantSpec(num_bits=3)
    low, high = search_range(values, spec=spec, signed=True)
    for i in range(6):
        alone = search_range(values[i:i + 1], spec=spec, signed=True)
        torch.testing.assert_close(low[i:i + 1], alone[0])
        torch.testing.assert_close(high[i:i + 1], alone[1])


def test_weights_are_multiplicities():
    values = torch.randn(1, 50)
    weights = torch.randint(1, 5, (50,))
    spec = QuantSpec(num_bits=3)
    found = search_range(
        values, spec=spec, signed=True, weights=weights.float()
    )
    repeated = values[0].repeat_interleave(weights)[None]
    expected = search_range(repeated, spec=spec, signed=True)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize('symmetric', [True, False])
def test_values_on_a_grid_keep_their_range(symmetric):
    spec = QuantSpec(num_bits=4, symmetric=symmetric)
    values = torch.arange(16.0)[None] * 0.25
    low, high = search_range(values, spec=spec, signed=False)
    assert low.item() == 0
    assert high.item() == pytest.approx(3.75, rel=0.02)


def test_dead_channel_stays_dead():
    low, high = search_range(
        torch.zeros(2, 5), spec=QuantSpec(num_bits=2), signed=False
    )
    assert low.tolist() == high.tolist() == [0, 0]
