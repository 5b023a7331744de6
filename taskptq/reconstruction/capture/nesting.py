"""Flatten nested arguments and outputs into tensor leaves, and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class TensorSlot:
    """Placeholder for the i-th tensor leaf of a tree."""

    index: int


def flatten(tree: Any) -> tuple[list[Tensor], Any]:
    """Split a tree of tuples, lists and dicts into tensors and a skeleton.

    >>> leaves, skeleton = flatten((torch.ones(1), {'scale': 2.0}))
    >>> leaves, skeleton
    ([tensor([1.])], (TensorSlot(index=0), {'scale': 2.0}))
    >>> unflatten(leaves, skeleton)
    (tensor([1.]), {'scale': 2.0})

    Returns:
        The tensor leaves in order, and the tree with each replaced by a
        :class:`TensorSlot`; other leaves stay in it.
    """
    leaves: list[Tensor] = []
    skeleton = _take_out(tree, leaves)
    return leaves, skeleton


def unflatten(leaves: list[Tensor], skeleton: Any) -> Any:
    """Put tensor leaves back into a skeleton."""
    return _put_back(skeleton, leaves)


# Not nested functions: a nested function that calls itself is a reference
# cycle, which keeps its tensors alive until the garbage collector runs.
def _take_out(node: Any, leaves: list[Tensor]) -> Any:
    if isinstance(node, Tensor):
        leaves.append(node)
        return TensorSlot(len(leaves) - 1)
    return _rebuild(node, _take_out, leaves)


def _put_back(node: Any, leaves: list[Tensor]) -> Any:
    if isinstance(node, TensorSlot):
        return leaves[node.index]
    return _rebuild(node, _put_back, leaves)


def _rebuild(
    node: Any,
    walk: Callable[[Any, list[Tensor]], Any],
    leaves: list[Tensor],
) -> Any:
    if type(node) is dict:
        return {key: walk(value, leaves) for key, value in node.items()}
    if isinstance(node, tuple) and hasattr(node, '_fields'):
        return type(node)(*(walk(value, leaves) for value in node))
    if type(node) in (list, tuple):
        return type(node)(walk(value, leaves) for value in node)
    return node


def named(leaves: list[Tensor]) -> Tensor | dict[str, Tensor]:
    """Return a single leaf itself, several as a dict '0', '1', ..."""
    if len(leaves) == 1:
        return leaves[0]
    return {str(index): leaf for index, leaf in enumerate(leaves)}


def is_float(leaf: Tensor) -> bool:
    """Whether a leaf holds activations rather than indices or masks."""
    return leaf.dtype in (torch.float32, torch.float16, torch.bfloat16)


def counts_things(dtype: torch.dtype) -> bool:
    """Whether a tensor holds integers, whose rows aren't independent items.

    Deformable attention, for example, reads one row of shapes per level.
    """
    return not (dtype.is_floating_point or dtype == torch.bool)
