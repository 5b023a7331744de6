"""Coordinate descent on the codes of weights."""

from __future__ import annotations

import torch
from torch import Tensor

from taskptq.core.code_grid import CodeGrid


@torch.no_grad()
def descend(
    codes: Tensor,
    target: Tensor,
    hessian: Tensor,
    *,
    grid: CodeGrid,
    sweeps: int,
    mask: Tensor | None = None,
) -> Tensor:
    """Move single codes to where the output error is least, in sweeps.

    With the error e = w - w_hat of a row and its output error e H e^T, the
    best value of column k is (e H)_k / H_kk further, rounded to the grid; no
    step raises the error. A sweep visits all columns in order.

    >>> from taskptq.core.code_grid import UniformCodes
    >>> grid = UniformCodes(scale=torch.ones(1, 1), bounds=(0, 3),
    ...                     zero_point=torch.zeros(1, 1))
    >>> descend(torch.tensor([[[0, 1]]]), torch.tensor([[[0.4, 0.4]]]),
    ...         torch.ones(1, 2, 2) + 1e-3 * torch.eye(2), grid=grid, sweeps=1)
    tensor([[[0, 1]]], dtype=torch.int32)

    Args:
        codes: (G, R, K), where to start.
        target: (G, R, K) float weights.
        hessian: (G, K, K), positive diagonal.
        grid: What codes stand for, of (G, R) or (1, 1) rows.
        sweeps: Most sweeps; fewer if one changes nothing.
        mask: Codes that may move, bool and shaped like them; None is all.

    Returns:
        int32 codes.
    """
    target, hessian = target.double(), hessian.double()
    grid = grid.double()
    work = codes.double()
    error = target - grid.values(work)
    gradient = error @ hessian
    for _ in range(sweeps):
        before = work.clone()
        for k in range(target.shape[2]):
            moved = grid.moved(
                work[..., k], gradient[..., k], hessian[:, k, k, None]
            )
            if mask is not None:
                moved = torch.where(mask[..., k], moved, work[..., k])
            change = grid.change(work[..., k], moved)
            gradient -= change[..., None] * hessian[:, k, None]
            work[..., k] = moved
        if torch.equal(before, work):
            break
    return work.to(torch.int32)
