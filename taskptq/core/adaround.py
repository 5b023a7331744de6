"""Learned rounding of weights, soft while it trains and hard afterwards."""
from __future__ import annotations

import torch
from torch import Tensor, nn

from taskptq.core.functional import per_channel
from taskptq.core.quantizers import AffineQuantizer

# Stretch of the rectified sigmoid: AdaRound, Nagel et al., ICML 2020, Eq. 23.
ZETA = 1.1
GAMMA = -0.1


class AdaRoundQuantizer(nn.Module):
    """Round each weight up or down as learned (AdaRound, Eqs. 22 to 24).

    ``w_hat = s (clamp(floor(w / s) + h(alpha) + z, quant_min, quant_max)
    - z)`` with ``h`` the rectified sigmoid, starting at the float weight.

    Args:
        quantizer: The weight's calibrated affine quantizer.
        weight: The float weight, any shape.
    """

    base: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, quantizer: AffineQuantizer, weight: Tensor) -> None:
        super().__init__()
        axis = quantizer.spec.ch_axis
        self.quant_min = quantizer.quant_min
        self.quant_max = quantizer.quant_max
        self.soft = True
        scale = per_channel(
            quantizer.scale.detach(), ndim=weight.dim(), ch_axis=axis
        )
        zero_point = per_channel(
            quantizer.zero_point, ndim=weight.dim(), ch_axis=axis
        )
        steps = weight.detach() / scale
        self.register_buffer('scale', scale)
        self.register_buffer('zero_point', zero_point.to(weight.dtype))
        # Everything but alpha is constant, so it is computed once.
        self.register_buffer('base', steps.floor() + self.zero_point)
        rest = steps - steps.floor()
        self.alpha = nn.Parameter(inverse_rectified_sigmoid(rest))

    def forward(self) -> Tensor:
        """Return the weight: soft while training, else on the grid."""
        if not self.soft:
            return (self.codes() - self.zero_point) * self.scale
        codes = self.base + rectified_sigmoid(self.alpha)
        codes = codes.clamp(self.quant_min, self.quant_max)
        return (codes - self.zero_point) * self.scale

    @torch.no_grad()
    def codes(self) -> Tensor:
        """Return the hard-rounded codes, int32."""
        up = (self.alpha >= 0).to(self.base.dtype)
        codes = (self.base + up).clamp(self.quant_min, self.quant_max)
        return codes.to(torch.int32)

    def regularization(self, beta: float) -> Tensor:
        """Return mean(1 - |2 h - 1|^beta), AdaRound Eq. 24 per weight."""
        return rounding_penalty(self.alpha, beta)

    @torch.no_grad()
    def decided(self) -> Tensor:
        """Return how many roundings are decided: |h - 0.5| > 0.49."""
        h = rectified_sigmoid(self.alpha)
        return ((h - 0.5).abs() > 0.49).sum()


def rectified_sigmoid(alpha: Tensor) -> Tensor:
    """Return clip(sigmoid(alpha) (zeta - gamma) + gamma, 0, 1)."""
    return (torch.sigmoid(alpha) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def inverse_rectified_sigmoid(h: Tensor) -> Tensor:
    """Return the alpha at which the rectified sigmoid is ``h`` in [0, 1]."""
    return torch.logit((h - GAMMA) / (ZETA - GAMMA))


def rounding_penalty(alpha: Tensor, beta: float) -> Tensor:
    """Return mean(1 - |2 h(alpha) - 1|^beta); 0 when all are decided."""
    h = rectified_sigmoid(alpha)
    return 1 - (2 * h - 1).abs().pow(beta).mean()
