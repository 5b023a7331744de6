"""Codes in training keep to the bits that they may take."""

import logging
from types import SimpleNamespace

import pytest
import torch

from taskptq.core import AffineQuantizer, QuantSpec
from taskptq.core.entropy import code_counts, coded_bits
from taskptq.core.latent_weight import LatentWeight
from taskptq.core.learned_rounding import LearnedRounding
from taskptq.reconstruction.rounding.rate_term import (
    CodedPart,
    RateTerm,
    coded_parts,
)


def part(*, latent, bits, step=0.5, mask=None):
    torch.manual_seed(0)
    weight = torch.randn(64, 40)
    quantizer = AffineQuantizer(QuantSpec(symmetric=True, num_bits=8))
    quantizer.set_bounds(signed=True)
    quantizer.set_range(-weight.abs().amax(), weight.abs().amax())
    quantizer.set_scale(torch.tensor([step]))
    quantizer.max_bits = bits * weight.numel()
    quantizer.mask = mask
    rounding = quantizer.start_rounding(quantizer.masked(weight))
    if latent:
        rounding = quantizer.start_rounding(weight, latent=True)
    return weight, CodedPart(rounding, quantizer)


def bits_of(one):
    return coded_bits(code_counts(one.codes(), bounds=one.bounds))


def train(weight, one, *, steps=60, lr=0.05):
    """Fit the weight itself; return the error of the final codes."""
    term = RateTerm([one])
    optimizer = torch.optim.Adam([one.rounding.alpha], lr=lr)
    for step in range(steps):
        (one.rounding() - weight).square().mean().backward()
        term.add_gradient(step)
        optimizer.step()
        optimizer.zero_grad()
    term.fit()
    steps_of = one.codes() - one.quantizer.zero_point
    return float((steps_of * one.rounding.scale - weight).square().mean())


@pytest.mark.parametrize('latent', [True, False])
def test_codes_end_within_their_bits(latent):
    weight, one = part(latent=latent, bits=2.4)
    kind = LatentWeight if latent else LearnedRounding
    assert type(one.rounding) is kind
    limit = one.quantizer.max_bits
    assert bits_of(one) > 1.15 * limit
    train(weight, one)
    assert 0.9 * limit < bits_of(one) <= limit


def test_a_loose_limit_changes_nothing():
    weight, one = part(latent=True, bits=6)
    nearest = one.codes()
    term = RateTerm([one])
    term.fit()
    assert torch.equal(one.codes(), nearest)
    assert train(weight, one) < 0.25 * 0.5**2


def test_what_one_step_cannot_save_is_saved_by_more(caplog):
    _, one = part(latent=True, bits=2.5, step=0.25)
    with caplog.at_level(logging.INFO, logger='taskptq'):
        RateTerm([one]).fit()
    assert bits_of(one) <= one.quantizer.max_bits
    assert 'bytes, 800 are allowed' in caplog.text


def test_a_limit_that_cannot_be_met_is_a_warning(caplog):
    _, one = part(latent=True, bits=0.001)
    RateTerm([one]).fit()
    assert [r.levelname for r in caplog.records] == ['WARNING']


def test_bits_move_between_weights():
    (_, dear), (_, cheap) = (part(latent=True, bits=2.6) for _ in range(2))
    cheap.quantizer.set_scale(torch.tensor([0.25]))
    cheap = CodedPart(
        cheap.quantizer.start_rounding(torch.randn(64, 40), latent=True),
        cheap.quantizer,
    )
    RateTerm([dear, cheap]).fit()
    limit = 2.6 * 64 * 40
    assert bits_of(dear) < limit < bits_of(cheap)
    assert bits_of(dear) + bits_of(cheap) <= 2 * limit


def test_masked_weights_count_as_zeros():
    mask = torch.rand(64, 40, generator=torch.Generator().manual_seed(1)) < 0.3
    _, one = part(latent=True, bits=8, mask=mask)
    assert (one.codes()[~mask] == one.quantizer.zero_point).all()
    assert (one.rounding.codes()[~mask] != 0).any()


def test_only_weights_with_a_limit_take_part():
    _, one = part(latent=True, bits=4)
    found = {'weight': None}
    layer = SimpleNamespace(
        roundings={'weight': one.rounding}, weight_quantizer_of=found.get
    )
    assert not list(coded_parts(layer))
    found['weight'] = one.quantizer
    assert list(coded_parts(layer)) == [one]
    one.quantizer.max_bits = None
    assert not list(coded_parts(layer))


@pytest.mark.parametrize('latent', [True, False])
def test_gradients_need_a_backward_pass(latent):
    _, one = part(latent=latent, bits=4)
    with pytest.raises(RuntimeError, match=r'call .*backward\(\)'):
        one.rounding.add_code_gradient(torch.zeros(64, 40))
