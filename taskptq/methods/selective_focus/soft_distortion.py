"""The lane distortion score through a soft decoding, with a gradient.

``lane_distortion`` compares decoded lanes, and decoding has thresholds. Where
a head's queries are lines by themselves (x at rows, and a probability), no
threshold is needed: our own formula, in the spirit of the score of Selective
Focus (Fan et al., AAAI 2024).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from taskptq.core.settings import Number
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

    which is 0 for equal lanes and 1 for lanes without a partner, as the
    lane distortion score over gamma. ``d / (1 + d)`` in place of
    ``min(d, 1)`` leaves lanes further off a gradient.

    Args:
        rows: x at R rows, (B, Q, R), as a fraction of the image's width.
        target: Those of the float model; get no gradient.
        presence: Probability that a query is a lane, (B, Q).
        target_presence: That of the float model; gets no gradient.
        gamma: Distance that costs half of a missing row, in image widths.

    Returns:
        Scalar in [0, 1].
    """
    target, there = target.detach().float(), target_presence.detach().float()
    apart = (rows.float() - target).abs() / gamma
    cost = (apart / (1 + apart)).mean(dim=-1)
    both = presence.float().minimum(there)
    either = presence.float().maximum(there)
    total = (both * cost + either - both).sum()
    return total / either.sum().clamp(min=LEAST_PRESENCE)


@RECON_LOSSES.register_module()
class SoftDistortionLoss:
    """Distortion of the lanes that a head's last queries are.

    Use it with ``reconstruction.scope='network'`` or ``network_steps``, and an
    adapter that names lines query by query (``lines = True``): ``box.{layer}``
    (B, Q, R) and ``foreground_proxy`` of ``cls.{layer}``.

    Args:
        gamma: See :func:`soft_distortion`; by default a lane's width in
            CULane's benchmark.

    Raises:
        ValueError: If ``gamma`` is invalid.
    """

    by_query = True

    def __init__(self, *, gamma: float = 30 / 1640) -> None:
        self.gamma = Number(above=0, high=1).read(gamma, name='gamma')

    def __call__(
        self, quant_out: Outputs, float_out: Outputs, context: ReconContext
    ) -> Tensor:
        """Return the loss of one minibatch.

        Raises:
            ValueError: If the adapter doesn't name lines query by query.
        """
        adapter = context.adapter
        if (
            context.unit
            or isinstance(quant_out, Tensor)
            or isinstance(float_out, Tensor)
            or not getattr(adapter, 'lines', False)
        ):
            raise ValueError(
                f'{type(self).__name__} on the unit {context.unit!r}: it '
                'needs queries that are lines; set network_steps, and use it '
                'with a model whose adapter names them'
            )
        last = max(n for n in float_out if n.startswith('box.'))
        return soft_distortion(
            quant_out[last],
            float_out[last],
            presence=presence_of(quant_out, adapter, last),
            target_presence=presence_of(float_out, adapter, last),
            gamma=self.gamma,
        )


def presence_of(heads: Mapping[str, Tensor], adapter: Any, box: str) -> Tensor:
    """Return how likely each query is a lane, (B, Q)."""
    layer = box.partition('.')[2]
    found: Tensor = adapter.foreground_proxy(heads)[f'cls.{layer}'][..., 0]
    return found
