"""Numbers that no quantized model has, under a digest that matches."""

import copy
import math

import pytest
import torch

from taskptq.export import QuantizedCheckpointError, unpack_model, verify
from taskptq.export.schema import compute_digest

WEIGHT = 'one.weight_quantizer'
INPUT = 'one.input_quantizer'
QUERY = 'query_quantizer'
SOFTMAX = 'softmax_quantizer'


def signed(payload):
    payload['digest'] = compute_digest(payload)
    return payload


def refused(payload, net, match):
    before = copy.deepcopy(net.state_dict())
    observers = [m.observer for m in net.modules() if hasattr(m, 'observer')]
    with pytest.raises(QuantizedCheckpointError, match=match) as caught:
        unpack_model(signed(payload), net)
    text = str(caught.value)
    assert '\n' not in text
    assert len(text) < 700
    after = net.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert observers == [
        m.observer for m in net.modules() if hasattr(m, 'observer')
    ]


def test_a_good_payload_passes(payload, net, new_net):
    other = new_net()
    unpack_model(payload, other)
    x = torch.randn(5, 6)
    with torch.no_grad():
        assert torch.equal(other(x), net(x))


@pytest.mark.parametrize(
    'value', [0.0, -1.0, math.nan, math.inf, -math.inf, 3e38]
)
@pytest.mark.parametrize('quantizer', [WEIGHT, INPUT, QUERY, SOFTMAX])
@pytest.mark.parametrize('which', [0, -1])
def test_scales(payload, new_net, quantizer, value, which):
    payload['quantizers'][f'{quantizer}.scale'][which] = value
    refused(payload, new_net(), f'{quantizer}.*scale')


def test_scale_that_vanishes_in_float32(payload, new_net):
    key = f'{INPUT}.scale'
    payload['quantizers'][key] = torch.tensor([1e-300], dtype=torch.float64)
    refused(payload, new_net(), f'{INPUT}.*scale')


@pytest.mark.parametrize(
    'grid',
    [
        [7, -8],
        [0, 14],
        [1, 16],
        [-1000, 15],
        [-8, 8],
        [-(2**31), 2**31 - 1],
        [0, 2**32 - 1],
        [0, 2**17 - 1],
        [5, 5],
    ],
)
@pytest.mark.parametrize('quantizer', [WEIGHT, INPUT, QUERY, SOFTMAX])
def test_grids_that_do_not_exist(payload, new_net, quantizer, grid):
    payload['quantizers'][f'{quantizer}.grid'] = torch.tensor(grid)
    with pytest.raises(QuantizedCheckpointError, match=f'{quantizer}.*grid'):
        verify(signed(payload))
    refused(payload, new_net(), f'{quantizer}.*grid')


@pytest.mark.parametrize(
    'grid', [[0, 255], [-128, 127], [0, 7], [0, 2**16 - 1], [-1, 0], [0, 1]]
)
@pytest.mark.parametrize('quantizer', [INPUT, QUERY, SOFTMAX])
def test_grids_of_other_bits(payload, new_net, quantizer, grid):
    payload['quantizers'][f'{quantizer}.grid'] = torch.tensor(grid)
    zero = payload['quantizers'].get(f'{quantizer}.zero_point')
    if zero is not None:
        zero.zero_()
    if f'{quantizer}.offset' in payload['quantizers']:
        payload['quantizers'][f'{quantizer}.offset'].zero_()
    verify(signed(payload))
    refused(payload, new_net(), f'{quantizer}.*4 bits in the model')


def test_weight_of_more_bits_than_the_recipe(payload, new_net):
    entry = payload['weights']['one.weight']
    entry.update(
        num_bits=16,
        quant_min=-(2**15),
        packed=torch.zeros(96, dtype=torch.uint8),
    )
    refused(payload, new_net(), r'one\.weight.*codes on the grid')
    payload['quantizers'][f'{WEIGHT}.grid'] = torch.tensor([-(2**15), 32767])
    refused(payload, new_net(), r'one\.weight.*16 bits in the file, 2 in')


@pytest.mark.parametrize(
    'field',
    [
        {'quant_min': -1000},
        {'quant_min': 0},
        {'quant_min': 2},
        {'num_bits': 32},
        {'num_bits': 3},
        {'quant_min': -8, 'num_bits': 4},
        {'packed': torch.zeros(11, dtype=torch.uint8)},
        {'packed': torch.zeros(0, dtype=torch.uint8)},
        {'packed': torch.zeros(12, dtype=torch.int8)},
        {'shape': [8, 5]},
        {'shape': [6, 8]},
        {'shape': [48]},
    ],
)
def test_descriptions_of_weights(payload, new_net, field):
    payload['weights']['one.weight'].update(field)
    refused(payload, new_net(), r'one\.weight')


@pytest.mark.parametrize('value', [10**9, -1, 16, -(10**9)])
@pytest.mark.parametrize('quantizer', [INPUT, QUERY])
def test_zero_points(payload, new_net, quantizer, value):
    key = f'{quantizer}.zero_point'
    payload['quantizers'][f'{quantizer}.grid'] = torch.tensor([0, 15])
    payload['quantizers'][key] = torch.tensor([value])
    refused(payload, new_net(), f'{quantizer}.*zero point')


def test_zero_point_of_a_symmetric_grid(payload, new_net):
    payload['quantizers'][f'{WEIGHT}.zero_point'][2] = 1
    verify(signed(payload))
    refused(payload, new_net(), f'{WEIGHT}.*symmetric')


@pytest.mark.parametrize(
    ('key', 'value', 'match'),
    [
        (f'{INPUT}.zero_point', torch.tensor([1.0]), 'zero point'),
        (f'{INPUT}.zero_point', torch.tensor([1, 1]), 'zero point'),
        (f'{INPUT}.offset', torch.tensor([math.nan]), 'offset'),
        (f'{INPUT}.offset', torch.tensor([1e9]), 'offset'),
        (f'{INPUT}.offset', torch.tensor([1.0, 1.0]), 'offset'),
        (f'{INPUT}.offset', torch.tensor([3]), 'offset'),
        (f'{INPUT}.scale', torch.tensor([1, 2]), 'scales of'),
        (f'{INPUT}.scale', torch.tensor(0.1), 'no scales'),
        (f'{INPUT}.scale', torch.empty(0), 'no scales'),
        (f'{INPUT}.grid', torch.empty(0, dtype=torch.int8), 'without a grid'),
        (f'{INPUT}.grid', torch.tensor([0.0, 15.0]), 'grid'),
        (f'{INPUT}.grid', torch.tensor([0, 15, 3]), 'grid'),
        (f'{QUERY}.gamma', torch.full((2, 4), math.nan), 'gamma.*not finite'),
        (f'{QUERY}.beta', torch.full((2, 4), math.inf), 'beta.*not finite'),
        (f'{QUERY}.gamma', torch.ones(8), 'shape'),
        (f'{QUERY}.gamma', torch.ones(1, 4), 'gamma and beta'),
        (f'{SOFTMAX}.tau', torch.tensor([3]), 'tau=3'),
        (f'{SOFTMAX}.tau', torch.tensor([-1]), 'tau=-1'),
        (f'{SOFTMAX}.tau', torch.tensor([1, 2]), 'tau'),
        (f'{SOFTMAX}.tau', torch.tensor([2.0]), 'tau'),
        (f'{SOFTMAX}.gain', torch.tensor([0.0]), 'gain'),
        (f'{SOFTMAX}.gain', torch.tensor([math.inf]), 'gain'),
        (f'{SOFTMAX}.gain', torch.tensor([1.0, 1.0]), 'gain'),
        ('one.weight_quantizer.scale', torch.ones(1), 'zero points|scale'),
    ],
)
def test_state_of_quantizers(payload, new_net, key, value, match):
    payload['quantizers'][key] = value
    refused(payload, new_net(), match)


@pytest.mark.parametrize('quantizer', [INPUT, WEIGHT, SOFTMAX])
def test_counts_of_scales(payload, new_net, quantizer):
    for field in ('scale', 'zero_point', 'offset', 'gain', 'tau'):
        key = f'{quantizer}.{field}'
        if key in payload['quantizers']:
            value = payload['quantizers'][key][:1]
            payload['quantizers'][key] = value.repeat(3)
    if quantizer != SOFTMAX:  # one for each head, which a run would tell
        refused(payload, new_net(), f'{quantizer.split("_")[0]}.*3 scale')


def test_packed_weight_without_a_grid(payload, new_net):
    for field in ('grid', 'scale', 'zero_point'):
        key = f'{WEIGHT}.{field}'
        payload['quantizers'][key] = payload['quantizers'][key][:0].clone()
    refused(payload, new_net(), r'one\.weight.*no grid')


def test_float_section(payload, new_net):
    payload['float']['norm.running_var'][0] = math.inf
    unpack_model(signed(payload), new_net())
    payload['float']['norm.running_var'][0] = math.nan
    refused(payload, new_net(), r'norm\.running_var.*NaN')
    payload['float']['norm.running_var'] = torch.ones(8).int()
    refused(payload, new_net(), r'norm\.running_var.*int32')


@pytest.mark.parametrize('section', ['weights', 'quantizers', 'float'])
def test_every_missing_entry_is_named(payload, new_net, section):
    for key in list(payload[section]):
        broken = {**payload, section: dict(payload[section])}
        del broken[section][key]
        refused(broken, new_net(), 'lacks|no grid|no scales')
