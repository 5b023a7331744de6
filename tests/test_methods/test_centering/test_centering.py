"""Centers by hand, the comparison with sign flips, the residual of values."""

import pytest
import torch

from taskptq.core.functional import fake_quantize, range_to_affine
from taskptq.methods.centering.centering import (
    AttentionCentering,
    key_edits,
    value_centering_report,
    value_centering_residual,
    value_edits,
)
from taskptq.methods.ptq4sam.bimodal_integration import (
    BimodalIntegration,
    sign_obstacle,
)
from taskptq.methods.rewriting.statistics import open_attention
from taskptq.methods.rewriting.views import attention_views
from taskptq.testing import tiny_batches, tiny_model

from ..conftest import randomized, stats_of  # isort: skip


def apply(edits):
    for edit in edits:
        edit.rows.copy_(edit.after)


def test_folding_of_two_channels():
    attention = torch.nn.MultiheadAttention(2, 1)
    attention.in_proj_bias.data.copy_(torch.tensor([1.0, 2, 3, 4, 5, 6]))
    attention.out_proj.weight.data.copy_(torch.tensor([[1.0, 2], [3, -1]]))
    attention.out_proj.bias.data.copy_(torch.tensor([10.0, 20.0]))
    (view,), _ = attention_views(attention)
    apply(key_edits(view, -torch.tensor([3.0, 0.5]).double()))
    apply(value_edits(view, -torch.tensor([4.0, 1.0]).double()))
    assert attention.in_proj_bias.tolist() == [1, 2, 0, 3.5, 1, 5]
    # W (4, 1) = (6, 11) comes back.
    assert attention.out_proj.bias.tolist() == [16, 31]


@pytest.mark.parametrize('center', ['midrange', 'mean'])
def test_center_of_the_data(center):
    """Tokens 0, 1 and 5 of one channel: mid-range 2.5, mean 2."""
    attention = torch.nn.MultiheadAttention(1, 1).eval()
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.tensor([[1.0], [2.0], [-1.0]]))
        attention.in_proj_bias.zero_()
    tokens = torch.tensor([0.0, 1.0, 5.0]).view(3, 1, 1)
    stats = stats_of((tokens, tokens, tokens))
    report = AttentionCentering(key_center=center, value_center=center)(
        attention, stats
    )
    middle = 2.5 if center == 'midrange' else 2.0
    assert attention.in_proj_bias.tolist() == pytest.approx(
        [0, -2 * middle, middle]
    )
    key, value = report.entries
    assert key.details['range_before'] == [0, 10]
    assert key.details['range_after'] == pytest.approx(
        [-2 * middle, 10 - 2 * middle]
    )
    assert value.details['max_center'] == pytest.approx(middle)
    settings = report.to_dict()['settings']
    assert settings['key_center'] == settings['value_center'] == center


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(key_center='attended'), "key_center='attended'"),
        (dict(value_center='median'), "value_center='median'"),
        (dict(keys=False, values=False), 'both False'),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        AttentionCentering(**options)


def mean_outputs(model, batch, forward):
    """Mean output of each attention, and its output projection's bias."""
    views, _ = attention_views(model)
    means = {}

    def hook(name):
        def keep(_module, _args, output):
            output = output[0] if isinstance(output, tuple) else output
            size = output.shape[-1]
            means[name] = output.reshape(-1, size).double().mean(0)

        return keep

    handles = [
        view.module.register_forward_hook(hook(view.name)) for view in views
    ]
    with torch.no_grad(), open_attention():
        forward(model, batch)
    for handle in handles:
        handle.remove()
    return [(means[view.name], view.out.bias.double()) for view in views]


@pytest.mark.parametrize('name', ['transformer', 'window'])
def test_attended_values_are_centered(name):
    """A mean of 0 enters the output projection: its bias is what leaves."""
    model = randomized(tiny_model(name))
    batch = tiny_batches(name, num_batches=1)[0]

    def forward(model, batch):
        return model(batch)

    before = mean_outputs(model, batch, forward)
    report = AttentionCentering()(model, stats_of(batch, forward=forward))
    assert report.count('applied') == 2 * len(before)
    after = mean_outputs(model, batch, forward)
    for (mean, old_bias), (same_mean, bias) in zip(before, after, strict=True):
        torch.testing.assert_close(mean, same_mean, rtol=1e-4, atol=1e-5)
        assert (mean - old_bias).abs().max() > 0.05
        torch.testing.assert_close(mean, bias, rtol=1e-4, atol=1e-5)


def test_attended_values_of_masked_keys_do_not_count():
    """Keyword arguments and a mask reach the second, bare attention."""
    attention = randomized(
        torch.nn.MultiheadAttention(8, 2, kdim=6, vdim=4, batch_first=True)
    )
    model = torch.nn.ModuleDict({'attn': attention})
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[:, 3:] = True
    value = torch.randn(2, 5, 4)
    value[:, 3:] = 1e4
    batch = dict(
        query=torch.randn(2, 3, 8),
        key=torch.randn(2, 5, 6),
        value=value,
        key_padding_mask=mask,
    )

    def forward(model, batch):
        return model['attn'](**batch)

    AttentionCentering()(model, stats_of(batch, forward=forward))
    ((mean, bias),) = mean_outputs(model, batch, forward)
    torch.testing.assert_close(mean, bias, rtol=1e-4, atol=1e-5)


# ---- the comparison with bimodal integration --------------------------------

DIM, NUM_KEYS = 32, 4096


def decoder_attention(spread):
    """SAM's decoder attention, keys centered at +-5 (1 + spread n)."""
    transformer = pytest.importorskip('segment_anything.modeling.transformer')
    torch.manual_seed(11)
    attention = transformer.Attention(DIM, 1).eval()
    signs = torch.where(torch.arange(DIM) % 2 == 0, 1.0, -1.0)
    with torch.no_grad():
        for name in 'qkv':
            getattr(attention, f'{name}_proj').weight.copy_(torch.eye(DIM))
            getattr(attention, f'{name}_proj').bias.zero_()
        attention.k_proj.bias.copy_(
            5 * signs * (1 + spread * torch.randn(DIM))
        )
    data = (
        torch.randn(1, 64, DIM),
        torch.randn(1, NUM_KEYS, DIM),
        torch.randn(1, NUM_KEYS, DIM),
    )
    return torch.nn.ModuleDict({'attn': attention}), data


def run_attention(model, batch):
    return model['attn'](*batch)


@torch.no_grad()
def key_error(model, data, bits):
    """Relative error of the output with keys quantized per tensor."""
    expected = run_attention(model, data)
    grid = dict(quant_min=0, quant_max=2**bits - 1)

    def quantize(_module, _args, keys):
        scale, zero_point = range_to_affine(
            keys.min(), keys.max(), symmetric=False, **grid
        )
        return fake_quantize(keys, scale=scale, zero_point=zero_point, **grid)

    handle = model['attn'].k_proj.register_forward_hook(quantize)
    found = run_attention(model, data)
    handle.remove()
    return float((found - expected).norm() / expected.norm())


def errors_of_all(spread, bits):
    rewrites = {
        'plain': None,
        'big': BimodalIntegration(patterns=None),
        'mean': AttentionCentering(values=False),
        'midrange': AttentionCentering(values=False, key_center='midrange'),
    }
    found = {}
    for name, rewrite in rewrites.items():
        model, data = decoder_attention(spread)
        if rewrite is not None:
            report = rewrite(model, stats_of(data, forward=run_attention))
            assert report.count('applied') == 1, report
        found[name] = key_error(model, data, bits)
    return found


@pytest.mark.parametrize(('spread', 'bits'), [(0.3, 4), (1.0, 4), (1.0, 6)])
def test_centering_beats_flipping_when_centers_differ(spread, bits):
    errors = errors_of_all(spread, bits)
    assert errors['midrange'] <= 1.05 * errors['mean'] < errors['big']
    assert errors['big'] < errors['plain']
    assert errors['midrange'] < 0.6 * errors['big']


def test_equal_centers_are_served_by_either():
    errors = errors_of_all(0.0, 4)
    assert errors['big'] < 0.5 * errors['plain']
    assert errors['midrange'] < 1.1 * errors['big']


# ---- values under a quantized softmax ---------------------------------------


def test_residual_by_hand():
    attention = torch.tensor([[0.5, 0.5], [0.75, 0.5], [0.25, 0.5]])
    residual = value_centering_residual(attention, torch.tensor([4.0, -8.0]))
    assert residual.tolist() == [[0, 0], [1, -2], [-1, 2]]


def test_residual_is_what_centering_takes_out():
    attention = torch.randn(2, 3, 10, 12).softmax(dim=-1)
    attention_hat = (attention * 15).round() / 15
    value = torch.randn(2, 3, 12, 4) + 3
    center = torch.tensor([3.0, 2.5, 3.5, 3.0])
    centered = attention_hat @ (value - center) + center
    plain = attention_hat @ value
    residual = value_centering_residual(attention_hat, center)
    torch.testing.assert_close(plain - residual, centered)
    report = value_centering_report(attention, attention_hat, value, center)
    exact = attention @ value
    expected = float((centered - exact).norm() / exact.norm())
    assert report['error_centered'] == pytest.approx(expected, rel=1e-4)
    assert report['row_sum_error'] == pytest.approx(
        float((attention_hat.sum(-1) - 1).abs().max())
    )
    # Rows that sum to 0.6 instead of 1 lose 40 % of the centers.
    assert report['error_centered'] < 0.5 * report['error']


def test_center_of_the_attended_values_serves_best():
    """Skewed values, of which the attended ones differ; 4 uniform bits."""
    generator = torch.Generator().manual_seed(5)
    value = torch.randn(200, 8, generator=generator).exp()
    # Queries favour tokens of small values; rows of A_hat sum to about 0.6.
    logits = -value.mean(-1) + 2 * torch.randn(300, 200, generator=generator)
    attention = logits.softmax(dim=-1)
    scale = attention.max() / 15
    attention_hat = (attention / scale).round() * scale
    centers = {
        'attended': (attention @ value).mean(0),
        'mean': value.mean(0),
        'midrange': (value.amax(0) + value.amin(0)) / 2,
    }
    errors = {
        name: value_centering_report(attention, attention_hat, value, center)[
            'error_centered'
        ]
        for name, center in centers.items()
    }
    plain = value_centering_report(
        attention, attention_hat, value, torch.zeros(8)
    )['error']
    assert errors['attended'] < 0.9 * errors['mean']
    assert errors['mean'] < plain < errors['midrange']


# ---- content and position with projections of their own ---------------------


@pytest.mark.parametrize('cross', [True, False])
def test_conditional_attention(cross):
    """Keys of both projections are centered, and nothing changes."""
    layers = pytest.importorskip(
        'mmdet.models.layers.transformer.conditional_detr_layers'
    )
    torch.manual_seed(3)
    attention = layers.ConditionalAttention(8, 2, cross_attn=cross).eval()
    with torch.no_grad():
        for name in ('kcontent_proj', 'kpos_proj', 'v_proj'):
            getattr(attention, name).bias.uniform_(-20, 20)
    model = torch.nn.ModuleDict({'attn': attention})
    query = torch.randn(2, 5, 8)
    batch = dict(query=query, key=query, query_pos=torch.randn(2, 5, 8))
    if cross:
        batch |= dict(
            key=torch.randn(2, 6, 8),
            key_pos=torch.randn(2, 6, 8),
            ref_sine_embed=torch.randn(2, 5, 8),
            is_first=True,
        )

    def forward(model, batch):
        return model['attn'](**batch)

    with torch.no_grad():
        expected = forward(model, batch)
        report = AttentionCentering()(model, stats_of(batch, forward=forward))
        found = forward(model, batch)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert [entry.part for entry in report.entries] == [
        'key',
        'key_position',
        'value',
    ]
    for entry in report.entries:
        assert entry.status == 'applied'
        low, high = entry.details['range_after']
        assert low < 0 < high
        assert high - low < max(map(abs, entry.details['range_before'])) / 3
    (view,), _ = attention_views(model)
    assert 'positions' in sign_obstacle(view)
