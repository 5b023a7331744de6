import pytest
import torch

from taskptq.robustness.attacks import (
    ATTACKS,
    attack,
    fgsm,
    pgd,
    random_signs,
)


def test_vector_of_fgsm():
    image = torch.tensor([0.2, 0.5, 0.9, 0.0])
    gradient = torch.tensor([0.3, -0.1, 0.2, -0.4])
    (found,) = fgsm(
        [image],
        lambda images: (images[0] * gradient).sum(),
        epsilon=8 / 255,
        limits=(0.0, 1.0),
    )
    wanted = torch.tensor([0.231373, 0.468627, 0.931373, 0.0])
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


@pytest.fixture
def images():
    return [255 * torch.rand(3, 4, 5), 255 * torch.rand(3, 6, 4)]


def far(images):
    """A loss that grows with the distance to a point within the range."""
    return sum(((image - 100) ** 2).sum() for image in images)


@pytest.mark.parametrize('name', ATTACKS)
def test_the_budget_and_the_range_hold(images, name):
    found = attack(name, images, far, epsilon=4.0, seed=3)
    again = attack(name, images, far, epsilon=4.0, seed=3)
    for image, one, two in zip(images, found, again, strict=True):
        assert torch.equal(one, two)
        assert 0 < float((one - image).abs().max()) <= 4.0 + 1e-4
        assert 0 <= float(one.min()) <= float(one.max()) <= 255


def test_gradients_raise_the_loss_more_than_chance(images):
    generator = torch.Generator().manual_seed(0)
    values = [
        float(far(found))
        for found in (
            images,
            random_signs(images, epsilon=8.0, generator=generator),
            fgsm(images, far, epsilon=8.0),
        )
    ]
    assert values[2] > max(values[:2])
    best = pgd(images, far, epsilon=8.0, generator=generator, steps=5)
    assert float(far(best)) == pytest.approx(values[2], rel=1e-3)


def test_refusals(images):
    with pytest.raises(ValueError, match="attack 'square' is unknown"):
        attack('square', images, far, epsilon=1, seed=0)
    with pytest.raises(RuntimeError, match='no gradient to its images'):
        fgsm(images, lambda found: torch.zeros(()), epsilon=1.0)
