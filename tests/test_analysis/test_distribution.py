"""Histograms and peaks of keys, row sums of quantized attentions."""

import json

import pytest
import torch

from taskptq.analysis.distribution import (
    compare_distributions,
    describe_keys,
    key_distributions,
    row_sum_errors,
)
from taskptq.calibration import calibrate
from taskptq.core.switches import enable, float_only
from taskptq.methods.ptq4sam.key_shift import KeyShift
from taskptq.prepare import QConfig, prepare
from taskptq.testing import tiny_batches, tiny_model


def run(model, batch):
    return model(batch)


class Stats:
    batches = tiny_batches('window')
    forward = staticmethod(run)


def test_describe_keys():
    keys = torch.cat([torch.randn(500, 4) - 6, torch.randn(500, 4) + 6], 1)
    found = describe_keys(keys, num_bins=20)
    edges = torch.tensor(found['histogram']['edges'])
    density = torch.tensor(found['histogram']['density'])
    assert float((density * edges.diff()).sum()) == pytest.approx(1)
    assert found['range'] == [float(keys.min()), float(keys.max())]
    assert found['peaks']['bimodal']
    assert found['center_std'] == pytest.approx(6, rel=0.1)
    widths = keys.amax(0) - keys.amin(0)
    assert found['mean_width'] == pytest.approx(float(widths.mean()))
    json.dumps(found)


def test_before_and_after_a_shift():
    model = tiny_model('window')
    describe = dict(batches=Stats.batches, forward=run)
    before = key_distributions(model, **describe)
    KeyShift(c=10.0, spread=0.1, patterns=None)(model, Stats())
    after = key_distributions(model, **describe)
    compared = compare_distributions(before, after)
    assert list(compared) == ['attn']
    assert compared['attn']['num_peaks'] == [1, 2]
    low, high = after['attn']['range']
    old_low, old_high = before['attn']['range']
    assert compared['attn']['range_ratio'] == pytest.approx(
        (high - low) / (old_high - old_low)
    )
    assert after['attn']['mean_width'] == pytest.approx(
        before['attn']['mean_width'], rel=1e-4
    )


def test_different_models_do_not_compare():
    keys = describe_keys(torch.randn(50, 4))
    with pytest.raises(ValueError, match=r"attentions \['b'\]"):
        compare_distributions({'a': keys}, {'a': keys, 'b': keys})


def test_row_sums():
    batches = tiny_batches('window')
    model = tiny_model('window')
    qconfig = dict(
        weight=dict(num_bits=8),
        activation=dict(num_bits=8),
        softmax=dict(num_bits=3),
    )
    prepare(model, QConfig.from_dict(qconfig))
    calibrate(model, batches, forward=run)
    enable(model)
    rows = []
    handle = model.attn.softmax_quantizer.register_forward_hook(
        lambda _m, _args, out: rows.append(out.detach().sum(-1).flatten())
    )
    found = row_sum_errors(model, batches, forward=run)['attn']
    handle.remove()
    error = torch.cat(rows) - 1
    assert found['max'] == pytest.approx(float(error.abs().max()))
    assert found['mean'] == pytest.approx(float(error.abs().mean()))
    assert found['bias'] == pytest.approx(float(error.mean()), rel=1e-3)
    assert found['mean'] > 0.01
    with float_only(model):
        assert (
            row_sum_errors(model, batches, forward=run)['attn']['max'] < 1e-5
        )
