"""The shift: unequal, balanced, the same for the same seed."""

import pytest
import torch

from taskptq.methods.ptq4sam.key_shift import KeyShift, draw_shift

from ..conftest import decoder_batch, stats_of  # isort: skip


def draw(**changes):
    options = dict(c=4.0, spread=0.3, seed=0, name='a') | changes
    return draw_shift(64, **options)


def test_equal_magnitudes_without_spread():
    shift = draw(spread=0.0)
    assert shift.abs().tolist() == [4.0] * 64
    assert int((shift > 0).sum()) == 32


def test_magnitudes_spread():
    magnitudes = draw().abs()
    assert magnitudes.unique().numel() == 64
    assert float(magnitudes.mean()) == pytest.approx(4, rel=0.1)
    assert float(magnitudes.std()) == pytest.approx(1.2, rel=0.3)


def test_seed_and_name_decide():
    assert torch.equal(draw(), draw())
    assert not torch.equal(draw(), draw(seed=1))
    assert not torch.equal(draw(), draw(name='b'))


def test_bias_gets_what_the_report_says(mask_decoder):
    attention = mask_decoder.mask_decoder.transformer.layers[1]
    attention = attention.cross_attn_token_to_image
    before = attention.k_proj.bias.detach().clone()
    report = KeyShift()(mask_decoder, stats_of(decoder_batch()))
    entry = report.entries[1]
    assert entry.name.endswith('layers.1.cross_attn_token_to_image')
    torch.testing.assert_close(
        attention.k_proj.bias.detach() - before,
        torch.tensor(entry.details['shift'], dtype=torch.float32),
    )
    assert report.to_dict()['num_applied'] == 3
    assert 0 < report.max_relative_error <= 1e-5
