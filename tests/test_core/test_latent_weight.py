import torch

from taskptq.core import (
    AffineQuantizer,
    LatentWeight,
    MinMaxObserver,
    QuantSpec,
)


def latent_of(weight, *, num_bits=4, symmetric=False):
    spec = QuantSpec(num_bits=num_bits, symmetric=symmetric, ch_axis=0)
    quantizer = AffineQuantizer(spec, observer=MinMaxObserver(spec))
    quantizer.observer.observe(weight)
    quantizer.calibrate()
    return LatentWeight(quantizer, weight), quantizer


def test_starts_rounded_to_nearest():
    weight = torch.randn(4, 3, 2, 2)
    latent, quantizer = latent_of(weight)
    torch.testing.assert_close(
        latent(), quantizer.dequantize(quantizer.quantize(weight))
    )
    assert torch.equal(latent.codes(), quantizer.quantize(weight))
    assert float(latent.settled()) == weight.numel()


def test_codes_move_further_than_to_their_neighbour():
    weight = torch.linspace(-1, 1, 24).reshape(2, 12)
    latent, quantizer = latent_of(weight)
    before = latent.codes()
    target = weight.flip(1)
    optimizer = torch.optim.Adam([latent.alpha], lr=0.5)
    for _ in range(60):
        optimizer.zero_grad()
        (latent() - target).square().sum().backward()
        optimizer.step()
    assert int((latent.codes() - before).abs().max()) > 1
    error = (latent() - target).detach().abs().max()
    assert float(error) <= float(quantizer.scale.max())


def test_gradient_of_the_scale():
    """d w_hat / d s is the code, clipped or not."""
    weight = torch.randn(3, 8)
    latent, quantizer = latent_of(weight, symmetric=True)
    latent.scale.requires_grad_(True)
    latent().sum().backward()
    codes = quantizer.quantize(weight).float()
    torch.testing.assert_close(latent.scale.grad[:, 0], codes.sum(dim=1))


def test_starts_from_solved_codes():
    weight = torch.randn(4, 3, 2, 2)
    latent, quantizer = latent_of(weight)
    codes = quantizer.quantize(weight).flip(0)
    latent.lean_towards(codes)
    assert torch.equal(latent.codes(), codes)


def test_settles_its_scale():
    weight = torch.randn(4, 6)
    latent, quantizer = latent_of(weight)
    start = quantizer.scale.clone()
    with torch.no_grad():
        latent.scale.mul_(1.5)
        latent.scale[0] = -1.0  # never below a tenth
    value = latent().detach()
    latent.settle(quantizer)
    torch.testing.assert_close(quantizer.scale[1:], 1.5 * start[1:])
    torch.testing.assert_close(quantizer.scale[0], 0.1 * start[0])
    torch.testing.assert_close(quantizer.dequantize(latent.codes()), value)
