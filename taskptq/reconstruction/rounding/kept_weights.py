"""Least squares for the weights that a mask keeps, the others being 0.

With the second moments H of the inputs, the output error of a row v against
the row w is ``(v - w) H (v - w)^T``. Among rows that are 0 outside of a mask
it is least where its gradient vanishes on the kept elements K (optimal brain
surgeon, Hassibi & Stork, NIPS 1992, for all removed weights at once):
``v_K = H_KK^-1 (H w)_K``.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Damping grows tenfold per failed factorisation, up to this.
MAX_DAMPING = 10.0


@torch.no_grad()
def fit_kept(weight: Tensor, hessian: Tensor, mask: Tensor) -> Tensor:
    """Return the masked weights with the least output error.

    >>> fit_kept(torch.tensor([[[1.0, 2.0]]]),
    ...          torch.tensor([[[1.0, 0.5], [0.5, 1.0]]]),
    ...          torch.tensor([[[True, False]]]))
    tensor([[[2., 0.]]], dtype=torch.float64)

    Args:
        weight: (G, R, K), what rows of weights are compared with.
        hessian: (G, K, K), symmetric and positive definite.
        mask: Which elements remain, bool (G, R, K).

    Returns:
        (G, R, K), float64.
    """
    weight, hessian = weight.double(), hessian.double()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    right = weight @ hessian
    fitted = torch.zeros_like(weight)
    for group, row in mask.any(dim=2).nonzero().tolist():
        kept = mask[group, row].nonzero()[:, 0]
        fitted[group, row, kept] = _fit_row(
            kept,
            ~mask[group, row],
            weight[group, row],
            right[group, row],
            hessian[group],
            inverse[group],
        )
    return fitted


def _fit_row(
    kept: Tensor,
    removed: Tensor,
    weight: Tensor,
    right: Tensor,
    hessian: Tensor,
    inverse: Tensor,
) -> Tensor:
    """Solve one row by the smaller of two systems: kept, or removed.

    With B = H^-1 the solution is also ``w - w_P B_PP^-1 B_P`` for the
    removed elements P.
    """
    gone = removed.nonzero()[:, 0]
    if len(kept) <= len(gone):
        return _solve(hessian[kept][:, kept], right[kept])
    if not len(gone):
        return weight
    factors = _solve(inverse[gone][:, gone], weight[gone])
    return weight[kept] - factors @ inverse[gone][:, kept]


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    factor = torch.linalg.cholesky(matrix)
    return torch.cholesky_solve(right[:, None], factor)[:, 0]


def damped_moments(hessian: Tensor, *, damping: float) -> Tensor:
    """Add a share of the mean diagonal to the diagonal, (G, K, K).

    It grows tenfold until the sum can be factorised.
    """
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(dim=1, keepdim=True)
    # A group without inputs: nothing depends on its weights.
    mean = mean.masked_fill(mean <= 0, 1.0)
    while damping <= MAX_DAMPING:
        share = (mean * damping).expand_as(diagonal)
        damped = hessian + torch.diag_embed(share)
        _, failed = torch.linalg.cholesky_ex(damped)
        if not failed.any():
            return damped
        damping = max(damping, 1e-4) * 10
    raise ValueError(
        f'the moments of shape {tuple(hessian.shape)} cannot be factorised '
        f'with any damping up to {MAX_DAMPING}: use rounding="nearest" for '
        'this layer'
    )
