"""What layers read: receptive fields, ranges, slices of fused weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from taskptq.methods.rewriting.readers import (
    Reader,
    collect_inputs,
    max_rows,
    receptive_fields,
)

from ..conftest import stats_of  # isort: skip


@pytest.mark.parametrize(
    'options',
    [
        {'kernel_size': 3, 'padding': 1, 'stride': 2},
        {'kernel_size': (3, 2), 'dilation': 2, 'padding': 'same'},
        {'kernel_size': 3, 'padding': 1, 'padding_mode': 'reflect'},
        {'kernel_size': 1},
    ],
)
def test_receptive_fields_are_what_a_convolution_multiplies(options):
    conv = nn.Conv2d(3, 4, bias=False, **options)
    x = torch.randn(2, 3, 7, 6)
    fields = receptive_fields(conv, x)
    y = torch.einsum('bchwij,ocij->bohw', fields, conv.weight)
    torch.testing.assert_close(y, conv(x))


def sampled(module, *batches):
    model = nn.Sequential(module)
    reader = Reader(name='0', module=module)
    stats = stats_of(*((batch,) for batch in batches))
    return reader, collect_inputs(model, [reader], stats)['0']


def test_rows_are_drawn_from_all_batches():
    conv = nn.Conv2d(2, 3, 3, padding=1)
    one, two = torch.rand(2, 2, 40, 40), 5 + torch.rand(2, 2, 40, 40)
    reader, sample = sampled(conv, one, two)
    assert sample.rows.shape == (max_rows(reader), 2, 3, 3)
    centers = sample.rows[:, :, 1, 1]
    assert (centers > 4).float().mean() == pytest.approx(0.5, abs=0.1)
    both = torch.cat([one, two])
    assert torch.equal(sample.min_val, both.amin(dim=(0, 2, 3)))
    assert torch.equal(sample.peaks, both.amax(dim=(0, 2, 3)))


def test_linear_rows_and_seed():
    linear = nn.Linear(4, 3)
    x = torch.randn(2, 5, 4)
    _, sample = sampled(linear, x)
    assert sample.rows.shape == (10, 4, 1, 1)
    known = {tuple(row.tolist()) for row in x.flatten(0, 1)}
    assert {tuple(row.flatten().tolist()) for row in sample.rows} == known
    assert torch.equal(sampled(linear, x)[1].rows, sample.rows)


def test_wide_layers_keep_fewer_rows():
    wide = nn.Conv2d(512, 4, 3)
    assert max_rows(Reader(name='', module=wide)) == 113
    assert max_rows(Reader(name='', module=nn.Linear(8, 8))) == 1024


def test_not_finite():
    x = torch.full((1, 4), float('nan'))
    with pytest.raises(ValueError, match='the input of 0 contains NaN'):
        sampled(nn.Linear(4, 3), x)


def test_no_data():
    with pytest.raises(ValueError, match='calibration set is empty'):
        collect_inputs(nn.Linear(4, 3), [], stats_of())


@pytest.mark.parametrize('fused', [True, False])
def test_attention_slots(fused):
    sizes = {} if fused else {'kdim': 6, 'vdim': 5}
    attn = nn.MultiheadAttention(8, 2, batch_first=True, **sizes)
    with torch.no_grad():
        attn.in_proj_bias.normal_()
    query = torch.randn(1, 3, 8)
    key = torch.randn(1, 4, sizes.get('kdim', 8))
    value = torch.randn(1, 4, sizes.get('vdim', 8))
    readers = [
        Reader(name='a', module=attn, slot=slot)
        for slot in ('query', 'key', 'value')
    ]
    stats = stats_of((query, key, value))
    stats.forward = lambda model, batch: model(
        batch[0], batch[1], value=batch[2]
    )
    samples = collect_inputs(attn, readers, stats)
    for reader, x in zip(readers, (query, key, value), strict=True):
        assert reader.num_channels == x.shape[-1]
        sample = samples[reader.label]
        assert torch.equal(sample.max_val, x.amax(dim=(0, 1)))
        projected = F.linear(x, reader.weight, reader.bias)
        assert projected.shape == (1, x.shape[1], 8)
    reader = readers[1]
    reader.bias.zero_()
    assert not attn.in_proj_bias[8:16].any()
    assert attn.in_proj_bias[:8].all()


@pytest.mark.parametrize(
    ('options', 'pads'),
    [
        ({}, False),
        ({'padding': 1}, True),
        ({'padding': (0, 1)}, True),
        ({'padding': 'same'}, True),
        ({'padding': 'valid'}, False),
    ],
)
def test_pads(options, pads):
    conv = nn.Conv2d(2, 2, 3, **options)
    assert Reader(name='', module=conv).pads is pads


def test_grouped_columns():
    conv = nn.Conv2d(4, 6, 1, groups=2)
    factors = Reader(name='', module=conv).by_column(
        torch.tensor([1.0, 2, 3, 4])
    )
    assert factors.shape == (6, 2, 1, 1)
    assert factors[0].flatten().tolist() == [1, 2]
    assert factors[5].flatten().tolist() == [3, 4]
