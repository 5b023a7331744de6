"""Pulls on latent weights: what training adds to their gradient.

A weight near the midpoint of two levels changes its code again and again,
even when training has converged. A pull moves it to its level. Weights are
(C, N), one output channel a row; ``values`` are their levels, same shape.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from taskptq.core.levels.mixture import (
    Mixture,
    mixture_pull,
    start_mixture,
    update_mixture,
)
from taskptq.core.settings import Flag, Number, Whole


def fixed_pull(weight: Tensor, values: Tensor, *, gamma: Tensor) -> Tensor:
    """Return ``gamma (w - w_hat)``, the gradient of a reconstruction error.

    That of ``gamma / 2 ||w - w_hat||^2`` with the codes held: ReBNN, Xu et
    al., AAAI 2023 (Eq. 3.144 of 'Binary Neural Networks', CRC Press).

    Args:
        weight: (C, N).
        values: Their levels, (C, N).
        gamma: Strength, broadcasts to (C, N).
    """
    return gamma * (weight - values)


def flip_gamma(
    codes: Tensor,
    previous: Tensor,
    gradient: Tensor,
    *,
    low: float = 0.0,
    high: float | None = None,
) -> Tensor:
    """Return each channel's strength from how many codes changed.

    ``gamma_c = (share of codes that changed) max_j |dL/dw_hat_cj|``: ReBNN
    (Eq. 3.150 of the book above). The full maximum would forbid every
    change; the share lets those happen that training needs.

    Args:
        codes: Codes of this step, (C, N).
        previous: Codes of the step before, (C, N).
        gradient: dL/dw_hat, (C, N).
        low: Least strength.
        high: Largest strength; None for any.

    Returns:
        (C, 1).
    """
    share = (codes != previous).to(gradient.dtype).mean(dim=1, keepdim=True)
    strength = share * gradient.abs().amax(dim=1, keepdim=True)
    return strength.clamp(min=low, max=high)


def backtracked_channels(
    scales: Tensor, norms: Tensor, *, share: float = 0.6
) -> Tensor:
    """Return the channels that converge out of step.

    With ``T = int(share C)``: those whose 1 / scale is among the C - T
    largest while the norm of their weights is not: RBONN, Xu et al., ECCV
    2022 (Eqs. 3.131-3.134 of the book above).

    >>> backtracked_channels(torch.tensor([0.9, 0.1, 0.5, 0.7, 0.3]),
    ...                      torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    tensor([False,  True, False, False, False])

    Args:
        scales: Scale of each channel, (C,).
        norms: Norm of each channel's weights, (C,).
        share: tau.

    Returns:
        Bool, (C,).
    """
    threshold = int(len(scales) * share)
    # argsort of argsort is the rank, from 0.
    dense = scales.argsort(descending=True).argsort() >= threshold
    heavy = norms.argsort().argsort() >= threshold
    return dense & ~heavy


class Pull(nn.Module):
    """Base class: what to add to a weight's gradient; here nothing.

    State lives in buffers that no file holds.

    Attributes:
        moves: Whether it moves weights after a step.
    """

    moves: ClassVar[bool] = False

    def gradient(
        self, weight: Tensor, values: Tensor, codes: Tensor, gradient: Tensor
    ) -> Tensor | None:
        """Return what to add to dL/dw, (C, N), or None for nothing.

        Called once in each backward pass.

        Args:
            weight: Latent weights, (C, N).
            values: Their levels, (C, N).
            codes: Their codes, (C, N).
            gradient: dL/dw_hat, (C, N).
        """
        del weight, values, codes, gradient
        return None

    def after_step(self, weight: Tensor, values: Tensor) -> Tensor | None:
        """Return the weights to go on with after an optimizer step, or None.

        Args:
            weight: Latent weights after the step, (C, N).
            values: Their levels, (C, N).
        """
        del weight, values
        return None


class FixedPull(Pull):
    """Pull with one strength.

    Args:
        gamma: Strength. The default is what ReBNN's public recipe amounts
            to.
    """

    def __init__(self, *, gamma: float = 2e-4) -> None:
        super().__init__()
        self.gamma = Number(low=0.0).read(gamma, name='gamma')

    def gradient(
        self, weight: Tensor, values: Tensor, codes: Tensor, gradient: Tensor
    ) -> Tensor:
        """Return ``gamma (w - w_hat)``."""
        del codes, gradient
        return fixed_pull(
            weight, values, gamma=torch.full_like(weight[:, :1], self.gamma)
        )


class FlipPull(Pull):
    """Pull as hard as a channel's codes change (:func:`flip_gamma`).

    Args:
        low: Least strength.
        high: Largest strength; None for any.

    Attributes:
        flip_rate: Share of codes that changed in the last step.
    """

    previous: Tensor | None

    def __init__(self, *, low: float = 0.0, high: float | None = None) -> None:
        super().__init__()
        self.low = Number(low=0.0).read(low, name='low')
        if high is not None:
            high = Number(low=self.low).read(high, name='high')
        self.high = high
        self.flip_rate = 0.0
        self.register_buffer('previous', None, persistent=False)

    def gradient(
        self, weight: Tensor, values: Tensor, codes: Tensor, gradient: Tensor
    ) -> Tensor:
        """Return the pull; nothing changed before the first step."""
        compact = codes.to(torch.uint8)
        previous = compact if self.previous is None else self.previous
        self.previous = compact
        self.flip_rate = float((compact != previous).float().mean())
        gamma = flip_gamma(
            compact, previous, gradient, low=self.low, high=self.high
        )
        return fixed_pull(weight, values, gamma=gamma)


class MixturePull(Pull):
    """Pull weights that lie between the two means of a mixture to these.

    POEM, Xu et al., BMVC 2021: see :mod:`taskptq.core.levels.mixture`.

    Args:
        tau: Strength.
        every: Steps between two updates of the mixture.
        relative: Let the pull have tau times the size of the gradient, so
            that tau means the same in every layer.
        symmetric: Keep the two components mirror images of each other.
    """

    mixture: Mixture | None

    def __init__(
        self,
        *,
        tau: float = 1e-3,
        every: int = 50,
        relative: bool = True,
        symmetric: bool = True,
    ) -> None:
        super().__init__()
        self.tau = Number(low=0.0).read(tau, name='tau')
        self.every = Whole(low=1).read(every, name='every')
        self.relative = Flag().read(relative, name='relative')
        self.symmetric = Flag().read(symmetric, name='symmetric')
        self.mixture = None
        self.step = 0

    def gradient(
        self, weight: Tensor, values: Tensor, codes: Tensor, gradient: Tensor
    ) -> Tensor:
        """Return ``-tau EM(w)``: a step against it goes to the means."""
        del values, codes
        if self.mixture is None:
            self.mixture = start_mixture(weight)
        if self.step % self.every == 0:
            self.mixture = update_mixture(
                weight, self.mixture, symmetric=self.symmetric
            )
        self.step += 1
        pull = mixture_pull(weight, self.mixture)
        strength = self.tau
        if self.relative:
            size = pull.square().mean().sqrt()
            own = gradient.square().mean().sqrt()
            strength = strength * float(own / size) if size > 0 else 0.0
        return torch.mul(pull, -strength)


class BacktrackPull(Pull):
    """Give weights that converge out of step part of their last value.

    RBONN: ``w_{t+1} + u w_t`` in :func:`backtracked_channels`, after the
    optimizer's step.

    Args:
        strength: u.
        share: tau, which sets how many channels it concerns.
        every: Steps between two of them.
    """

    moves = True
    before: Tensor | None

    def __init__(
        self, *, strength: float = 0.2, share: float = 0.6, every: int = 1
    ) -> None:
        super().__init__()
        self.strength = Number(low=0.0, high=1.0).read(
            strength, name='strength'
        )
        self.share = Number(low=0.0, high=1.0).read(share, name='share')
        self.every = Whole(low=1).read(every, name='every')
        self.step = 0
        self.register_buffer('before', None, persistent=False)

    def after_step(self, weight: Tensor, values: Tensor) -> Tensor | None:
        """Return the weights with the chosen channels moved."""
        before, self.before = self.before, weight.detach().clone()
        self.step += 1
        if before is None or self.step % self.every:
            return None
        chosen = backtracked_channels(
            values.abs().amax(dim=1),
            weight.abs().sum(dim=1),
            share=self.share,
        )
        moved = weight + self.strength * chosen[:, None] * before
        self.before = moved.detach().clone()
        result: Tensor = moved
        return result


PULLS: dict[str, type[Pull]] = {
    'none': Pull,
    'fixed': FixedPull,
    'flip': FlipPull,
    'mixture': MixturePull,
    'backtrack': BacktrackPull,
}
