"""Rotated heads: every attention keeps its output, peaks spread."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from taskptq.methods.head_rotation.hadamard import hadamard
from taskptq.methods.head_rotation.rewrite import HeadRotation, rotated
from taskptq.prepare import QConfig

from ..conftest import (  # isort: skip
    Crossing,
    crossing_batch,
    decoder_batch,
    randomized,
    stats_of,
    window_batch,
    window_model,
)


def relative(before, after):
    return float((after - before).abs().max() / before.abs().max())


def double(batch):
    return tuple(x.double() if x.is_floating_point() else x for x in batch)


def check(model, batch, forward=None, parts=2, **options):
    """Rotate everything in float64; the output stays."""
    model, batch = model.double(), double(batch)
    stats = stats_of(batch)
    if forward is not None:
        stats.forward = forward
    run = stats.forward
    with torch.no_grad():
        expected = run(model, batch)
        report = HeadRotation(always=True, **options)(model, stats)
        found = run(model, batch)
    assert report.entries
    assert {entry.status for entry in report.entries} == {'applied'}
    assert len({entry.part for entry in report.entries}) == parts
    assert report.max_relative_error < 1e-10
    assert relative(expected, found) < 1e-10
    return report


@pytest.mark.parametrize(
    'options', [{}, {'batch_first': True}, {'kdim': 12, 'vdim': 16}]
)
def test_multihead_attention(options):
    if 'kdim' in options:
        model = randomized(nn.MultiheadAttention(16, 4, kdim=12, vdim=12))
        model = nn.ModuleDict({'attn': model})
        batch = (torch.randn(5, 2, 16), torch.randn(9, 2, 12))
        check(
            model,
            batch,
            lambda m, b: m['attn'](b[0], b[1], b[1])[0],
        )
        return
    check(randomized(Crossing(**options)), crossing_batch())


def test_parts():
    model = randomized(Crossing())
    report = check(model, crossing_batch(), parts=1, values=False)
    assert [entry.part for entry in report.entries] == ['query_key']
    report = check(model, crossing_batch(), parts=1, queries=False)
    assert [entry.part for entry in report.entries] == ['value']


@pytest.mark.parametrize('kind', ['tiny', 'mmdet', 'mmseg'])
def test_windows(kind):
    model = window_model(kind)
    check(model, window_batch(), lambda m, b: m['attn'](*b))


def test_segment_anything_encoder(image_encoder):
    """Heads of 12 channels; the tables of relative positions turn as well."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, 40, 40, generator=generator)
    report = check(nn.Sequential(image_encoder), (x,))
    assert len(report.entries) == 6
    assert {entry.details['size'] for entry in report.entries} == {12}


def test_segment_anything_decoder(mask_decoder):
    check(mask_decoder, decoder_batch(), lambda m, b: m(*b)[0])


@pytest.mark.parametrize('cross', [False, True])
def test_conditional_attention(cross):
    layers = pytest.importorskip('mmdet.models.layers.transformer.utils')
    attention = layers.ConditionalAttention(
        16, num_heads=4, cross_attn=cross, keep_query_pos=True
    )
    model = randomized(nn.ModuleDict({'attn': attention}))
    generator = torch.Generator().manual_seed(0)

    def noise(number):
        return torch.randn(2, number, 16, generator=generator)

    batch = (noise(5), noise(7), noise(5), noise(5), noise(7))

    def forward(m, b):
        query, key, query_pos, sine, key_pos = b
        return m['attn'](
            query=query,
            key=key if cross else query,
            query_pos=query_pos,
            ref_sine_embed=sine,
            key_pos=key_pos if cross else query_pos,
            is_first=cross,
        )

    check(model, batch, forward)


def peaked():
    """Keys and values with one channel of each head far from the others."""
    model = randomized(Crossing(batch_first=True), deviation=0.1)
    with torch.no_grad():
        for rows in (slice(16, 32), slice(32, 48)):
            model.attn.in_proj_weight[rows][::4] *= 12
    return model


def with_bits(stats, bits):
    qconfig = QConfig.from_dict(
        {'weight': {'num_bits': bits}, 'activation': {'num_bits': bits}}
    )
    return SimpleNamespace(
        batches=stats.batches, forward=stats.forward, qconfig=qconfig
    )


def test_the_error_of_peaked_heads_falls():
    stats = with_bits(stats_of(crossing_batch()), 4)
    report = HeadRotation()(peaked(), stats)
    for entry in report.entries:
        assert entry.status == 'applied'
        assert (
            entry.details['error_after'] < 0.8 * entry.details['error_before']
        )
        assert entry.details['operations_per_element'] == 0


def test_even_heads_stay():
    """Signs of one magnitude lie on a grid; any rotation leaves it."""
    model = randomized(Crossing(batch_first=True), deviation=0)
    with torch.no_grad():
        identity = torch.eye(16).repeat(3, 1)
        model.attn.in_proj_weight.copy_(identity)
        model.attn.out_proj.weight.copy_(torch.eye(16))
    query, memory, padding = crossing_batch()
    stats = with_bits(stats_of((query.sign(), memory.sign(), padding)), 4)
    report = HeadRotation()(model, stats)
    first = report.entries[0]
    assert (first.part, first.status) == ('query_key', 'unchanged')
    assert first.reason == 'no rotation lowers the error of its operands'


@pytest.mark.parametrize(
    ('options', 'reason'),
    [
        ({'add_bias_kv': True}, 'a learned or zero token joins'),
        ({'add_zero_attn': True}, 'a learned or zero token joins'),
    ],
)
def test_refused_by_name(options, reason):
    report = HeadRotation()(
        randomized(Crossing(**options)), stats_of(crossing_batch())
    )
    assert {entry.status for entry in report.entries} == {'skipped'}
    assert all(reason in entry.reason for entry in report.entries)


def test_heads_of_odd_size_are_refused():
    model = nn.ModuleDict({'attn': nn.MultiheadAttention(12, 4)}).eval()
    stats = stats_of(torch.randn(3, 2, 12))
    stats.forward = lambda m, x: m['attn'](x, x, x)[0]
    report = HeadRotation()(model, stats)
    assert {entry.reason for entry in report.entries} == {
        'no Hadamard matrix of 3 rows is known'
    }


def test_two_rotations_are_one():
    x = torch.randn(5, 8).double()
    one, other = hadamard(4), hadamard(4).flip(0)
    torch.testing.assert_close(
        rotated(rotated(x, one), other), rotated(x, one @ other)
    )


def test_nothing_to_rotate():
    with pytest.raises(ValueError, match='rotate one of them'):
        HeadRotation(queries=False, values=False)
