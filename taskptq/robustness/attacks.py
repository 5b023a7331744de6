"""Attacks on images within a budget per pixel (L-infinity).

FGSM (Goodfellow et al., 2015): x + eps sign(g). PGD (Madry et al., 2018):
from a random start, steps of ``step`` along the sign, projected on the ball
and on the range of pixels. Random signs are the control: what they cost, a
gradient did not find.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ['ATTACKS', 'attack', 'fgsm', 'pgd', 'random_signs']

# Images -> loss to raise, a scalar with gradients to each of them.
Loss = Callable[[Sequence[Tensor]], Tensor]
PIXELS = (0.0, 255.0)
PGD_STEPS = 10


def _gradients(images: Sequence[Tensor], loss: Loss) -> list[Tensor]:
    """Return the loss's gradients to the images.

    Raises:
        RuntimeError: If the loss does not depend on the images.
    """
    inputs = [image.detach().clone().requires_grad_() for image in images]
    with torch.enable_grad():
        value = loss(inputs)
        if not value.requires_grad:
            raise RuntimeError(
                "the model's loss has no gradient to its images: something "
                'in the model detaches it, so only transferred attacks work'
            )
        found = torch.autograd.grad(value, inputs, allow_unused=True)
    return [
        torch.zeros_like(image) if gradient is None else gradient
        for image, gradient in zip(inputs, found, strict=True)
    ]


def fgsm(
    images: Sequence[Tensor],
    loss: Loss,
    *,
    epsilon: float,
    limits: tuple[float, float] = PIXELS,
) -> list[Tensor]:
    """Take one step along the sign of the gradient.

    Args:
        images: (C, H, W) each, floating, in the unit of ``limits``.
        loss: Loss to raise.
        epsilon: Budget, in the unit of ``limits``.
        limits: Least and greatest value of a pixel.
    """
    return [
        (image + epsilon * gradient.sign()).clamp(*limits)
        for image, gradient in zip(
            images, _gradients(images, loss), strict=True
        )
    ]


def pgd(
    images: Sequence[Tensor],
    loss: Loss,
    *,
    epsilon: float,
    generator: torch.Generator,
    steps: int = PGD_STEPS,
    limits: tuple[float, float] = PIXELS,
) -> list[Tensor]:
    """Take several projected steps of 2.5 eps / steps.

    Args:
        images: See :func:`fgsm`.
        loss: Loss to raise.
        epsilon: Budget.
        generator: Draws the start, uniform in the ball.
        steps: Number of steps.
        limits: See :func:`fgsm`.
    """
    step = 2.5 * epsilon / steps
    found = [
        (image + epsilon * (2 * noise - 1)).clamp(*limits)
        for image, noise in _drawn(images, generator)
    ]
    for _ in range(steps):
        gradients = _gradients(found, loss)
        found = [
            (current + step * gradient.sign())
            .clamp(image - epsilon, image + epsilon)
            .clamp(*limits)
            for image, current, gradient in zip(
                images, found, gradients, strict=True
            )
        ]
    return found


def random_signs(
    images: Sequence[Tensor],
    *,
    epsilon: float,
    generator: torch.Generator,
    limits: tuple[float, float] = PIXELS,
) -> list[Tensor]:
    """Use the whole budget in random directions.

    Args:
        images: See :func:`fgsm`.
        epsilon: Budget.
        generator: Draws the signs.
        limits: See :func:`fgsm`.
    """
    return [
        (image + epsilon * (noise - 0.5).sign()).clamp(*limits)
        for image, noise in _drawn(images, generator)
    ]


def _drawn(
    images: Sequence[Tensor], generator: torch.Generator
) -> list[tuple[Tensor, Tensor]]:
    """Return each image with uniform noise of its shape, in [0, 1)."""
    return [
        (image, torch.rand(image.shape, generator=generator).to(image))
        for image in images
    ]


ATTACKS = ('fgsm', 'pgd', 'random')


def attack(
    name: str,
    images: Sequence[Tensor],
    loss: Loss,
    *,
    epsilon: float,
    seed: int,
) -> list[Tensor]:
    """Attack images by name.

    Args:
        name: One of ``ATTACKS``.
        images: (C, H, W) each, floating, 0 to 255.
        loss: Loss to raise; ``random`` does not ask it.
        epsilon: Budget in pixel values.
        seed: Seed of what is drawn.

    Raises:
        ValueError: If there is no such attack.
    """
    generator = torch.Generator().manual_seed(seed)
    if name == 'fgsm':
        return fgsm(images, loss, epsilon=epsilon)
    if name == 'pgd':
        return pgd(images, loss, epsilon=epsilon, generator=generator)
    if name == 'random':
        return random_signs(images, epsilon=epsilon, generator=generator)
    raise ValueError(
        f'attack {name!r} is unknown: choose one of {", ".join(ATTACKS)}'
    )
