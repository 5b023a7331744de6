import pytest
import torch

from taskptq.core import LatentWeight
from taskptq.modules.base import quant_modules
from taskptq.prepare.blocks import Unit
from taskptq.reconstruction.rounding.attached import learning
from taskptq.testing import tiny_batches


def attached(quantized, quick, **settings):
    model = quantized('conv', tiny_batches('conv'), bits=4)
    return model, learning(Unit('', model), quick(**settings))


@pytest.mark.parametrize('latent', [False, True])
def test_nothing_is_left_behind(quantized, quick, latent):
    model, context = attached(quantized, quick, latent_weights=latent)
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    with context as learned:
        assert all(p.requires_grad for p in learned.parameters())
        kinds = {isinstance(r, LatentWeight) for r in learned.roundings}
        assert kinds == {latent}
    after = {n: p.requires_grad for n, p in model.named_parameters()}
    assert after == flags
    assert all(m.rounded_parameters for _, m in quant_modules(model))
    assert not any(m.roundings for _, m in quant_modules(model))


def test_latent_weights_bring_scales_and_biases(quantized, quick):
    """One scale for each weight, and each bias there is."""
    counts = []
    for latent in (False, True):
        model, context = attached(
            quantized, quick, latent_weights=latent, learn_scales=False
        )
        with context as learned:
            counts.append(len(learned.scales))
    modules = [module for _, module in quant_modules(model)]
    biases = sum(module.bias_of() is not None for module in modules)
    assert counts == [0, len(modules) + biases]


def test_coarse_grids_take_larger_steps(quantized, quick):
    shares = []
    for bits in (4, 8):
        model, context = attached(quantized, quick, latent_weights=True)
        _, module = quant_modules(model)[1]
        quantizer = module.input_quantizer
        quantizer.quant_max = quantizer.quant_min + 2**bits - 1
        with context as learned:
            number = next(
                i
                for i, scale in enumerate(learned.scales)
                if scale is quantizer.scale
            )
            size = float(quantizer.scale.detach().abs().mean())
            shares.append(learned.magnitudes[number] / size)
    assert shares == pytest.approx([(255 / 15) ** 0.5, 1.0])


def test_a_share_of_changed_codes(quantized, quick):
    _, context = attached(quantized, quick, latent_weights=True)
    with context as learned:
        assert learned.flipped() == 0
        assert learned.settled() == 1
        with torch.no_grad():
            for rounding in learned.roundings:
                rounding.alpha.sub_(1)
        assert learned.flipped() > 0.5
