"""Orthogonal matrices with entries of one magnitude."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ['hadamard', 'has_hadamard', 'random_hadamard']

# Heads are narrower.
MAX_SIZE = 4096


def has_hadamard(size: int) -> bool:
    """Whether :func:`hadamard` knows a matrix of this size.

    >>> [size for size in range(1, 33) if has_hadamard(size)]
    [1, 2, 4, 8, 12, 16, 20, 24, 32]
    """
    return 1 <= size <= MAX_SIZE and _core(size) is not None


def hadamard(size: int) -> Tensor:
    """Return an orthogonal matrix of entries +-1 / sqrt(size).

    Sizes are 2^m, or 2^m (p + 1) for a prime p with p = 3 mod 4 (Sylvester,
    1867; Paley, 'On orthogonal matrices', 1933, lemma 2).

    Args:
        size: Rows and columns, n.

    Returns:
        (n, n) float64.

    Raises:
        ValueError: If no matrix of this size is known here.
    """
    core = _core(size) if 1 <= size <= MAX_SIZE else None
    if core is None:
        raise ValueError(
            f'size={size}: give 2^m, or 2^m (p + 1) for a prime p of 4 k + 3, '
            f'up to {MAX_SIZE}'
        )
    matrix = _paley(core) if core > 1 else torch.ones(1, 1).double()
    step = torch.tensor([[1.0, 1.0], [1.0, -1.0]]).double()
    while len(matrix) < size:
        matrix = torch.kron(step, matrix)
    normalized: Tensor = matrix / float(size) ** 0.5
    return normalized


def random_hadamard(size: int, *, seed: int) -> Tensor:
    """Return ``diag(signs) H``, whose signs follow from a seed.

    Args:
        size: Rows and columns, n; see :func:`hadamard`.
        seed: Seed of the signs.

    Returns:
        (n, n) float64, orthogonal.
    """
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (size,), generator=generator) * 2 - 1
    return signs.double()[:, None] * hadamard(size)


def _core(size: int) -> int | None:
    """Return 1 or the smallest p + 1 of which size is 2^m times; or None."""
    found = None
    while size % 2 == 0:
        if _is_paley(size):
            found = size
        size //= 2
    return 1 if size == 1 else found


def _is_paley(size: int) -> bool:
    prime = size - 1
    return (
        prime > 2
        and prime % 4 == 3
        and all(prime % k for k in range(2, int(prime**0.5) + 1))
    )


def _paley(size: int) -> Tensor:
    """Paley's first construction: I + S with the quadratic residues of p."""
    prime = size - 1
    residues = {k * k % prime for k in range(1, prime)}
    legendre = torch.tensor(
        [0.0] + [1.0 if k in residues else -1.0 for k in range(1, prime)]
    ).double()
    index = torch.arange(prime)
    jacobsthal = legendre[(index[:, None] - index) % prime]
    skew = torch.zeros(size, size).double()
    skew[0, 1:] = 1
    skew[1:, 0] = -1
    skew[1:, 1:] = jacobsthal
    return torch.eye(size).double() + skew
