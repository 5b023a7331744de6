"""Views of projections, and statistics of what they give."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from taskptq.methods.rewriting import statistics as attention_statistics
from taskptq.methods.rewriting.statistics import (
    ChannelStatistics,
    collect_statistics,
)
from taskptq.methods.rewriting.views import (
    PARTS,
    attention_views,
)
from taskptq.testing import TinyWindowAttention, tiny_batches, tiny_model


def run(model, batch):
    return model(batch)


def linear_maps(module):
    """The three projections, written down for each kind by hand."""
    if isinstance(module, nn.MultiheadAttention):
        biases = (None,) * 3
        if module.in_proj_bias is not None:
            biases = module.in_proj_bias.chunk(3)
        weights = (
            module.q_proj_weight,
            module.k_proj_weight,
            module.v_proj_weight,
        )
        if module.in_proj_weight is not None:
            weights = module.in_proj_weight.chunk(3)
        return list(zip(weights, biases, strict=True))
    return list(
        zip(module.qkv.weight.chunk(3), module.qkv.bias.chunk(3), strict=True)
    )


@pytest.mark.parametrize('name', ['transformer', 'window'])
def test_statistics_of_all_attentions_in_one_pass(name):
    """Against the inputs of each attention, caught and projected here."""
    model = tiny_model(name)
    views, _ = attention_views(model)
    batches = tiny_batches(name, num_batches=3)
    calls = []
    found = collect_statistics(
        model, views, batches, forward=lambda m, x: calls.append(1) or m(x)
    )
    assert len(calls) == 3
    inputs = {view.name: [] for view in views}
    for view in views:
        view.module.register_forward_pre_hook(
            lambda _m, args, seen=inputs[view.name]: seen.append(args[0])
        )
    with torch.no_grad():
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            for batch in batches:
                model(batch)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
        for view in views:
            x = torch.cat(inputs[view.name])
            for part, (weight, bias) in zip(
                PARTS, linear_maps(view.module), strict=True
            ):
                expected = F.linear(x, weight, bias).flatten(0, 1)
                statistics = found[view.name][part]
                close = torch.testing.assert_close
                close(statistics.min_val, expected.amin(0))
                close(statistics.max_val, expected.amax(0))
                close(
                    statistics.mean,
                    expected.mean(0).double(),
                    atol=1e-6,
                    rtol=1e-4,
                )
                assert statistics.num_tokens == expected.shape[0]


def test_kernels_are_as_before():
    assert torch.backends.mha.get_fastpath_enabled()
    model = tiny_model('transformer').train()
    views, _ = attention_views(model)
    collect_statistics(model, views, tiny_batches('transformer'), forward=run)
    assert torch.backends.mha.get_fastpath_enabled()
    assert model.training
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_one_batch_is_the_first_in_which_it_ran():

    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = TinyWindowAttention(8, num_heads=2, window_size=(2, 2))

        def forward(self, x):
            return self.attn(x) if x.shape[0] > 1 else x

    model = Sometimes()
    views, _ = attention_views(model)
    batches = [torch.randn(size, 4, 8) for size in (1, 3, 5, 2)]
    calls = []
    found = collect_statistics(
        model,
        views,
        batches,
        parts=['key'],
        one_batch=True,
        forward=lambda m, x: calls.append(len(x)) or m(x),
    )
    assert calls == [1, 3]
    assert found['attn']['key'].num_tokens == 3 * 4
    assert collect_statistics(model, views, batches[:1], forward=run) == {}


def test_large_tensor_is_sampled_alike_every_time(monkeypatch):
    monkeypatch.setattr(attention_statistics, 'MAX_SAMPLE', 400)
    x = torch.randn(2, 500, 4)
    one, two = ChannelStatistics.of(x), ChannelStatistics.of(x)
    assert one.sample.shape == (100, 4)
    assert torch.equal(one.sample, two.sample)
    rows = {tuple(row.tolist()) for row in x.flatten(0, 1)}
    assert all(tuple(row.tolist()) in rows for row in one.sample)
    assert one.num_values == 4000
    assert torch.equal(one.max_val, x.amax(dim=(0, 1)))


def test_sampling_keeps_the_decision():
    centers = torch.where(torch.arange(64) < 32, -4.0, 4.0)
    centers += torch.linspace(-1, 1, 64)
    large = torch.randn(8000, 64) + centers
    for x, bimodal in ((large, True), (large - centers, False)):
        statistics = ChannelStatistics.of(x)
        assert statistics.sample.numel() < x.numel()
        assert statistics.peaks().bimodal is bimodal


def test_bad_data_is_named():
    model = tiny_model('window')
    views, _ = attention_views(model)
    with pytest.raises(ValueError, match='set is empty'):
        collect_statistics(model, views, [], forward=run)
    batch = tiny_batches('window')[0] * float('nan')
    with pytest.raises(ValueError, match=r'attn \(query\): .* NaN'):
        collect_statistics(model, views, [batch], forward=run)
