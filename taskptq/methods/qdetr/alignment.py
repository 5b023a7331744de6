"""Distribution alignment (DA) of queries inside their quantizer.

Q-DETR, Xu et al., CVPR 2023, Eq. 7 to 9: the entropy of a nearly Gaussian
query is highest when it is standardised, so its quantizer reads
``gamma * (q - mean(q)) / sqrt(var(q) + eps) + beta`` instead of q.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskptq.core.observers import Observer
from taskptq.core.quantizers import LSQQuantizer
from taskptq.core.settings import Flag, Number
from taskptq.core.spec import QuantSpec
from taskptq.registry import QUANTIZERS

# A standardised channel with less variance over the tokens counts as constant.
MIN_VARIANCE = 1e-8


def standardize(x: Tensor, *, eps: float) -> Tensor:
    """Return ``(x - mean) / sqrt(var + eps)`` over the last axis.

    Q-DETR, Eq. 9, without its affine part; population variance.

    Args:
        x: (..., C).
        eps: Added to the variance, in squared units of ``x``.
    """
    return F.layer_norm(x, x.shape[-1:], eps=eps)


class AlignmentObserver(Observer):
    """Sums to fit gamma and beta, and sampled tokens to find the range.

    The sums cover every token. The range needs the aligned values, which are
    known only after the fit, so an even sample of the tokens is kept.

    Args:
        spec: Grid.
        inner: Observer for the aligned values.
        eps: Epsilon of the standardisation.
        max_elements: Most numbers kept (four bytes each).
    """

    reductions: ClassVar[dict[str, str]] = {
        **Observer.reductions,
        'shape': 'max',
        'moments': 'sum',
        'sample': 'gather',
    }
    shape: Tensor
    moments: Tensor
    sample: Tensor

    def __init__(
        self,
        spec: QuantSpec,
        *,
        inner: Observer,
        eps: float,
        max_elements: int = 1 << 21,
    ) -> None:
        super().__init__(spec)
        self.inner = inner
        self.eps = eps
        self.max_elements = max_elements
        self.every = 1
        for name, dtype in (
            ('shape', torch.int64),
            ('moments', torch.float64),
            ('sample', torch.float32),
        ):
            empty = torch.empty(0, dtype=dtype)
            self.register_buffer(name, empty, persistent=False)

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Add queries, (..., H, N, C), to the statistics.

        Raises:
            ValueError: If they hold NaN or infinity.
        """
        super().observe(x)
        if x.numel():
            # T x H x C
            self._keep(x.detach().float().transpose(-3, -2).flatten(0, -3))

    def update(self, rows: Tensor, low: Tensor, high: Tensor) -> None:
        """Widen the range of the float values."""
        self._extend(low, high)

    def _keep(self, tokens: Tensor) -> None:
        """Add (T, H, C) to the sums and a part of it to the sample."""
        q, z = tokens.double(), standardize(tokens, eps=self.eps).double()
        sums = [
            torch.full_like(q[0], len(q)),
            z.sum(0),
            z.square().sum(0),
            q.sum(0),
            (z * q).sum(0),
        ]
        moments = torch.stack(sums).flatten()
        if self.moments.numel():
            moments = moments + self.moments
        self.moments = moments
        self.shape = torch.tensor(tokens.shape[1:], device=tokens.device)
        # Vary the first token, as tokens are queries in a fixed order.
        chosen = tokens[(self.num_batches - 1) % self.every :: self.every]
        self.sample = torch.cat([self.sample, chosen.flatten()])
        while self.sample.numel() > self.max_elements:
            thinned = self.tokens()[::2]
            self.every *= 2
            self.sample = thinned.flatten()
            if len(thinned) == 1:
                break

    def tokens(self) -> Tensor:
        """Return the sample, (T, H, C)."""
        heads, channels = self.shape.tolist()
        return self.sample.view(-1, heads, channels)

    def fit(self, *, shared: bool) -> tuple[Tensor, Tensor]:
        """Fit gamma and beta to the float queries by least squares.

        Separately per channel, over all tokens seen (float64):
        ``gamma = cov(z, q) / var(z)``, ``beta = mean(q) - gamma mean(z)``.

        Args:
            shared: Use one gamma and beta for all heads.

        Returns:
            gamma and beta, (H, C), or (1, C) if shared.
        """
        moments = self.moments.view(5, *self.shape.tolist())
        if shared:
            moments = moments.sum(dim=1, keepdim=True)
        count, *sums = moments
        z, zz, q, zq = (total / count for total in sums)
        variance = zz - z.square()
        gamma = (zq - z * q) / variance.clamp(min=MIN_VARIANCE)
        gamma = gamma.masked_fill(variance < MIN_VARIANCE, 0.0)
        return gamma.float(), (q - gamma * z).float()


@QUANTIZERS.register_module()
class AlignedQuantizer(LSQQuantizer):
    """Standardise the queries of each token and head, then quantize them.

    For ``query`` and ``key`` of a QConfig; reads (..., H, N, C). When off,
    it passes the float queries through like any quantizer; within
    :func:`taskptq.core.transforming` it aligns without rounding, which shows
    the cost of the alignment alone. gamma and beta start where the aligned
    queries are closest to the float ones, and are learned with the scale.

    One gamma and beta per head is our choice; the authors' release shares
    them among the heads, as ``shared=True`` does.

    Mean and variance are per token, so unlike a BatchNorm the
    standardisation cannot be folded: an exported model needs it as a
    separate operation (a LayerNormalization over each head's channels, then
    gamma and beta) between the query projection and the matmul. gamma
    cannot be folded into either, because rounding follows it.

    Args:
        spec: Grid of the aligned queries.
        observer: Observer for the aligned queries.
        learn_zero_point: Also learn the zero point.
        eps: Added to the variance, (0, 1].
        shared: Use one gamma and beta for all heads.

    Attributes:
        gamma: (H, C), or (1, C) if shared; empty before calibration.
        beta: (H, C), or (1, C) if shared; empty before calibration.

    Raises:
        SettingError: If ``eps`` is outside (0, 1].
    """

    points = ('query', 'key')
    rescales = True

    def __init__(
        self,
        spec: QuantSpec,
        *,
        observer: Observer | None = None,
        learn_zero_point: bool = False,
        eps: float = 1e-5,
        shared: bool = False,
    ) -> None:
        eps = Number(above=0, high=1).read(eps, name='eps')
        shared = Flag().read(shared, name='shared')
        if observer is not None:
            observer = AlignmentObserver(spec, inner=observer, eps=eps)
        super().__init__(
            spec, observer=observer, learn_zero_point=learn_zero_point
        )
        self.eps = eps
        self.shared = shared
        self.gamma = nn.Parameter(torch.empty(0), requires_grad=False)
        self.beta = nn.Parameter(torch.empty(0), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``, aligned and quantized if enabled."""
        if self.transform_only and self.calibrated:
            return self.align(x)
        return super().forward(x)

    def quantize_and_drop(self, x: Tensor) -> Tensor:
        """Align, then quantize; QDrop's float values are aligned too."""
        return super().quantize_and_drop(self.align(x))

    def align(self, x: Tensor) -> Tensor:
        """Return the aligned queries, shape and dtype of ``x``.

        Args:
            x: (..., H, N, C).

        Raises:
            ValueError: If heads or channels differ from calibration.
        """
        heads, channels = self.gamma.shape
        if x.shape[-1] != channels or heads not in (1, x.shape[-3]):
            raise ValueError(
                f'gamma has shape {tuple(self.gamma.shape)}, heads and '
                f'channels, but the queries (..., heads, N, channels) '
                f'{tuple(x.shape)}: calibrate the model again'
            )
        z = standardize(x, eps=self.eps)
        # Both H x 1 x C
        return (z * self.gamma[:, None] + self.beta[:, None]).to(x.dtype)

    @torch.no_grad()
    def calibrate(self) -> bool:
        """Fit gamma and beta, then set the range of the aligned queries."""
        observer = self.observer
        if not isinstance(observer, AlignmentObserver):
            return super().calibrate()
        if not observer.observed:
            return False
        gamma, beta = observer.fit(shared=self.shared)
        self.gamma.data, self.beta.data = gamma, beta
        tokens = observer.tokens()[:, :, None]  # T x H x 1 x C
        self.observer = observer.inner
        self.observer.observe(self.align(tokens))
        return super().calibrate()

    def state_faults(self, fields: Mapping[str, Tensor]) -> Iterator[str]:
        """Yield gamma and beta of different shapes."""
        gamma, beta = fields.get('gamma'), fields.get('beta')
        if gamma is None or beta is None:
            return
        if gamma.shape != beta.shape or (self.shared and gamma.shape[0] != 1):
            yield (
                f'has gamma and beta of shapes {list(gamma.shape)} and '
                f'{list(beta.shape)}'
            )

    def learnable(self) -> list[nn.Parameter]:
        """Return the scale (and offset), gamma and beta."""
        learned = super().learnable()
        return [*learned, self.gamma, self.beta] if learned else []

    def magnitude_of(self, parameter: nn.Parameter) -> float:
        """Return gamma's magnitude for beta, which may start at zero."""
        if parameter is self.beta:
            parameter = self.gamma
        return super().magnitude_of(parameter)
