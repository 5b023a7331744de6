"""Queries of float and quantized models: codes, entropy, densities."""

import math

import pytest
import torch
from torch import nn

from taskptq.analysis.query_distribution import (
    QuerySample,
    collect_queries,
    describe_queries,
    entropy_of,
)
from taskptq.core import AffineQuantizer, MinMaxObserver, QuantSpec


class Net(nn.Module):
    """Quantizes queries (B, H, N, C) = (1, 2, 3, 4)."""

    def __init__(self, num_bits=3):
        super().__init__()
        spec = QuantSpec(num_bits=num_bits, symmetric=False)
        self.query = AffineQuantizer(spec, observer=MinMaxObserver(spec))

    def forward(self, x):
        return self.query(x)


def calibrated():
    net = Net()
    net.query.observer.observe(torch.linspace(-1, 2.5, 8))
    net.query.calibrate()
    net.query.enabled = True
    return net


def run(model, batch):
    return model(batch)


@pytest.mark.parametrize(
    ('codes', 'bits'),
    [([0, 0, 0], 0.0), ([0, 1, 2, 3], 2.0), ([0, 0, 0, 1], 0.811278)],
)
def test_entropy(codes, bits):
    assert entropy_of(torch.tensor(codes)) == pytest.approx(bits, abs=1e-6)


def test_codes_are_those_of_the_grid():
    batches = [torch.randn(1, 2, 3, 4), torch.randn(2, 2, 3, 4)]
    net = calibrated()
    found = collect_queries(
        net, batches, forward=run, points={'layer 0': 'query'}
    )['layer 0']
    assert found.values.shape == (2, 3 * 12)
    assert found.num_bits == 3
    assert int(found.codes.min()) >= net.query.quant_min
    assert int(found.codes.max()) <= net.query.quant_max
    zero = int(net.query.zero_point)
    torch.testing.assert_close(
        (found.codes - zero) * found.steps[:, None], found.values
    )
    assert not net.query._forward_hooks


def test_float_queries_have_no_codes():
    x = torch.randn(1, 2, 3, 4)
    found = collect_queries(Net(), [x], forward=run, points={'a': 'query'})
    assert found['a'].codes is None
    assert torch.equal(found['a'].values, x[0].flatten(1))


def test_point_without_data_is_named():
    with pytest.raises(ValueError, match='query saw no query'):
        collect_queries(Net(), [], forward=run, points={'a': 'query'})


def test_densities_share_their_bins_and_add_up_to_one():
    values = torch.randn(2, 500)
    steps = torch.tensor([0.5])
    codes = (values / 0.5).round().long()
    found = describe_queries(
        {
            'float': QuerySample(values=values),
            'w3': QuerySample(
                values=codes * 0.5, codes=codes, steps=steps, num_bits=3
            ),
        },
        num_bins=32,
    )
    widths = torch.tensor(found['edges']).diff()
    for stage in found['stages'].values():
        density = torch.tensor(stage['density'])
        assert float((density * widths).sum()) == pytest.approx(1)
    one, two = found['stages'].values()
    assert one['entropy'] is None
    assert two['entropy'] == pytest.approx(entropy_of(codes))
    assert two['entropy'] <= math.log2(two['num_codes'])
    assert one['head_means'][0] <= one['mean'] <= one['head_means'][1]


def test_nothing_to_describe():
    with pytest.raises(ValueError, match='at least one'):
        describe_queries({})
