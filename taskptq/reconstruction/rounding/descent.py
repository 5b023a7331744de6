"""Coordinate descent on the codes of weights."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def descend(
    codes: Tensor,
    target: Tensor,
    hessian: Tensor,
    *,
    scale: Tensor,
    zero_point: Tensor,
    bounds: tuple[int, int],
    sweeps: int,
    mask: Tensor | None = None,
) -> Tensor:
    """Move single codes to where the output error is least, in sweeps.

    With the error e = w - s (q - z) of a row and its output error e H e^T,
    the best change of code k is (e H)_k / (s H_kk), rounded and clamped; no
    step raises the error. A sweep visits all columns in order.

    >>> descend(torch.tensor([[[0, 1]]]), torch.tensor([[[0.4, 0.4]]]),
    ...         torch.ones(1, 2, 2) + 1e-3 * torch.eye(2),
    ...         scale=torch.ones(1, 1), zero_point=torch.zeros(1, 1),
    ...         bounds=(0, 3), sweeps=1)
    tensor([[[0, 1]]], dtype=torch.int32)

    Args:
        codes: (G, R, K), where to start.
        target: (G, R, K) float weights.
        hessian: (G, K, K), positive diagonal.
        scale: Broadcasts to (G, R).
        zero_point: Like ``scale``.
        bounds: Lowest and highest code.
        sweeps: Most sweeps; fewer if one changes nothing.
        mask: Codes that may move, bool and shaped like them; None is all.

    Returns:
        int32 codes.
    """
    target, hessian = target.double(), hessian.double()
    scale = scale.double().expand(target.shape[:2])
    work = codes.double()
    error = target - scale[..., None] * (work - zero_point[..., None])
    gradient = error @ hessian
    for _ in range(sweeps):
        before = work.clone()
        for k in range(target.shape[2]):
            curvature = scale * hessian[:, k, k, None]
            moved = work[..., k] + (gradient[..., k] / curvature).round()
            moved.clamp_(*bounds)
            if mask is not None:
                moved = torch.where(mask[..., k], moved, work[..., k])
            change = (moved - work[..., k]) * scale
            gradient -= change[..., None] * hessian[:, k, None]
            work[..., k] = moved
        if torch.equal(before, work):
            break
    return work.to(torch.int32)
