"""Which tensors lie in the same memory, also while torch.export traces.

Its tensors have no memory, but views of one tensor still have one storage.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ['is_exporting', 'same_start', 'shares_memory']


def is_exporting() -> bool:
    """Whether torch.export traces; torch before 2.7 does not tell."""
    known = getattr(torch.compiler, 'is_exporting', None)
    return known is not None and bool(known())


def same_start(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors begin at the same place of memory.

    >>> x = torch.zeros(4)
    >>> same_start(x[1:], x[1:3]), same_start(x, x[1:])
    (True, False)
    """
    if not is_exporting():
        return a.data_ptr() == b.data_ptr()
    return shares_memory(a, b) and a.storage_offset() == b.storage_offset()


def shares_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors lie in one storage.

    >>> x = torch.zeros(4)
    >>> shares_memory(x, x[1:]), shares_memory(x, x.clone())
    (True, False)
    """
    if a is b:
        return True
    own, other = a.untyped_storage(), b.untyped_storage()
    if is_exporting():
        return bool(own._cdata == other._cdata)
    return own.data_ptr() == other.data_ptr()
