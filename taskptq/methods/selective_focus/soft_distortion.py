"""The lane distortion score through a soft decoding, with a gradient.

``lane_distortion`` compares decoded lanes, and decoding has thresholds. Where
a head's queries are lines by themselves (x at rows, and a probability), no
threshold is needed: our own formula, in the spirit of the score of Selective
Focus (Fan et al., AAAI 2024).
"""

from __future__ import annotations

from torch import Tensor

from taskptq.core.settings import Flag, Number
from taskptq.reconstruction.losses import Outputs, ReconContext
from taskptq.registry import RECON_LOSSES

__all__ = ['SoftDistortionLoss', 'soft_distortion']

# Probability that all queries of a batch share at least, so that images
# without lanes divide by something.
LEAST_PRESENCE = 1e-3


def soft_distortion(
    rows: Tensor,
    target: Tensor,
    *,
    presence: Tensor,
    target_presence: Tensor,
    gamma: float,
) -> Tensor:
    """Return the distortion of lanes that are there with a probability.

    Query by query, with p and t the two probabilities and
    ``d = |dx| / gamma``::

        sum(min(p, t) mean_rows(d / (1 + d)) + |p - t|) / sum(max(p, t))

    or, with probabilities of each row, the same sum over rows instead of
    queries, so that ends of lanes count as well. It is 0 for equal lanes and 1
    for lanes without a partner, as the lane distortion score over gamma.
    ``d / (1 + d)`` in place of ``min(d, 1)`` leaves lanes further off a
    gradient.

    Args:
        rows: x at R rows, (B, Q, R), as a fraction of the image's width.
        target: Those of the float model; get no gradient.
        presence: Probability that a query is a lane, (B, Q), or that it is
            one at a row, (B, Q, R).
        target_presence: That of the float model; gets no gradient.
        gamma: Distance that costs half of a missing row, in image widths.

    Returns:
        Scalar in [0, 1].
    """
    target, there = target.detach().float(), target_presence.detach().float()
    apart = (rows.float() - target).abs() / gamma
    cost = apart / (1 + apart)
    if there.dim() < cost.dim():
        cost = cost.mean(dim=-1)
    both = presence.float().minimum(there)
    either = presence.float().maximum(there)
    total = (both * cost + either - both).sum()
    return total / either.sum().clamp(min=LEAST_PRESENCE)


@RECON_LOSSES.register_module()
class SoftDistortionLoss:
    """Distortion of the lanes that a head's queries are.

    Use it with ``reconstruction.scope='network'`` or ``network_steps``, and an
    adapter whose ``soft_lines(heads)`` returns x at rows and probabilities,
    see :func:`soft_distortion`, with a gradient.

    Args:
        gamma: See :func:`soft_distortion`; by default a lane's width in
            CULane's benchmark.
        by_query: Run the model as losses on a decoder's queries do, in two
            parts, so that steps on the decoder repeat nothing before it.

    Raises:
        ValueError: If a setting is invalid.
    """

    def __init__(
        self, *, gamma: float = 30 / 1640, by_query: bool = False
    ) -> None:
        self.gamma = Number(above=0, high=1).read(gamma, name='gamma')
        self.by_query = Flag().read(by_query, name='by_query')

    def __call__(
        self, quant_out: Outputs, float_out: Outputs, context: ReconContext
    ) -> Tensor:
        """Return the loss of one minibatch.

        Raises:
            ValueError: If the adapter doesn't name lines query by query.
        """
        soft_lines = getattr(context.adapter, 'soft_lines', None)
        if (
            context.unit
            or isinstance(quant_out, Tensor)
            or isinstance(float_out, Tensor)
            or soft_lines is None
        ):
            raise ValueError(
                f'{type(self).__name__} on the unit {context.unit!r}: it '
                'needs queries that are lines; set network_steps, and use it '
                'with a model whose adapter has soft_lines'
            )
        rows, presence = soft_lines(quant_out)
        target, target_presence = soft_lines(float_out)
        return soft_distortion(
            rows,
            target,
            presence=presence,
            target_presence=target_presence,
            gamma=self.gamma,
        )
