"""Flatten nested arguments and outputs into tensor leaves, and back."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class TensorSlot:
    """Place of the i-th tensor leaf in a tree."""

    index: int


def flatten(tree: Any) -> tuple[list[Tensor], Any]:
    """Split a tree of tuples, lists and dicts into tensors and a skeleton.

    Returns:
        The tensor leaves in order, and the tree with each replaced by a
        :class:`TensorSlot`; other leaves stay in it.
    """
    leaves: list[Tensor] = []

    def walk(node: Any) -> Any:
        if isinstance(node, Tensor):
            leaves.append(node)
            return TensorSlot(len(leaves) - 1)
        return _rebuild(node, walk)

    return leaves, walk(tree)


def unflatten(leaves: list[Tensor], skeleton: Any) -> Any:
    """Put tensor leaves back into a skeleton."""

    def walk(node: Any) -> Any:
        if isinstance(node, TensorSlot):
            return leaves[node.index]
        return _rebuild(node, walk)

    return walk(skeleton)


def _rebuild(node: Any, walk: Any) -> Any:
    if type(node) is dict:
        return {key: walk(value) for key, value in node.items()}
    if isinstance(node, tuple) and hasattr(node, '_fields'):
        return type(node)(*(walk(value) for value in node))
    if type(node) in (list, tuple):
        return type(node)(walk(value) for value in node)
    return node


def named(leaves: list[Tensor]) -> Tensor | dict[str, Tensor]:
    """Return a single leaf as it is, several as a dict '0', '1', ..."""
    if len(leaves) == 1:
        return leaves[0]
    return {str(index): leaf for index, leaf in enumerate(leaves)}


def is_float(leaf: Tensor) -> bool:
    """Whether a leaf holds activations rather than indices or masks."""
    return leaf.dtype in (torch.float32, torch.float16, torch.bfloat16)
