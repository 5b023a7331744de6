"""Logarithmic grid with base 2^(1/tau), for softmax outputs."""
from __future__ import annotations

import torch
from torch import Tensor, nn

from taskptq.core.functional import round_ste
from taskptq.core.observers import Observer
from taskptq.core.quantizers import Quantizer
from taskptq.core.spec import QuantSpec

# Smallest normal float32: below it a value is zero.
TINY = torch.finfo(torch.float32).tiny


class PowerOfTwoQuantizer(Quantizer):
    """Quantize (0, 1] on ``scale * 2^(-q / tau)``; too small becomes 0.

    PTQ4SAM, Lv et al., CVPR 2024, section 3.3 (adaptive granularity):
    ``q = round(-tau log2(x / scale))``, codes of 2^b and above map to 0. The
    last code, 2^b - 1, is kept as an ordinary level.

    Args:
        spec: Only ``num_bits`` is read; the grid is unsigned.
        observer: Statistics of the range; the scale starts at the maximum.
        tau: 1, 2 or 4; larger spends levels near the maximum.

    Raises:
        ValueError: If ``tau`` is not one of the three.
    """

    def __init__(
        self,
        spec: QuantSpec,
        *,
        observer: Observer | None = None,
        tau: int = 1,
    ) -> None:
        super().__init__(spec, observer=observer)
        self.scale = nn.Parameter(torch.empty(0), requires_grad=False)
        self.register_buffer('tau', torch.empty(0, dtype=torch.int32))
        self.tau: Tensor
        self.set_tau(tau)

    def set_tau(self, tau: int) -> None:
        """Choose the granularity.

        Raises:
            ValueError: If ``tau`` is not 1, 2 or 4.
        """
        if tau not in (1, 2, 4):
            raise ValueError(f'tau={tau} is not supported: choose 1, 2 or 4')
        self.tau = torch.tensor(
            [tau], dtype=torch.int32, device=self.scale.device
        )

    def set_range(self, min_val: Tensor, max_val: Tensor) -> None:
        """Put the top level at ``max_val``, (1,); ``min_val`` is 0."""
        self.scale.data = max_val.float().reshape(-1).clamp(min=TINY)

    def learnable(self) -> list[nn.Parameter]:
        """Return the scale."""
        return [self.scale] if self.calibrated else []

    @torch.no_grad()
    def settle(self) -> None:
        """Keep a learned scale positive, after training."""
        self.scale.data.clamp_(min=TINY)

    def quantize(self, x: Tensor) -> Tensor:
        """Return codes, int32; 2^b marks an exact zero."""
        codes = self._steps(x).round().clamp(0, self.spec.num_levels)
        return codes.masked_fill(x < TINY, self.spec.num_levels).to(
            torch.int32
        )

    def dequantize(self, codes: Tensor) -> Tensor:
        """Return the float values of codes."""
        values = self.scale * torch.exp2(-codes / self.tau)
        return values.masked_fill(codes >= self.spec.num_levels, 0.0)

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Return ``x`` on the grid; gradients pass straight through."""
        codes = round_ste(self._steps(x)).clamp(min=0)
        x_hat = self.scale * torch.exp2(-codes / self.tau)
        # At 7 and 8 bits the grid reaches below the smallest float.
        zero = (codes.detach() >= self.spec.num_levels) | (x < TINY)
        return x_hat.masked_fill(zero, 0.0).to(x.dtype)

    def _steps(self, x: Tensor) -> Tensor:
        return -self.tau * torch.log2(x.float().clamp(min=TINY) / self.scale)
