"""Files of one image, for networks whose batch cannot be free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from taskptq.engine.raw_outputs import BATCH, Part, stem_of

__all__ = ['first_image', 'one_by_one', 'without_batch']


def first_image(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a preprocessed batch of the first image of another."""
    return {
        **data,
        'inputs': data['inputs'][:1],
        'data_samples': list(data['data_samples'])[:1],
    }


def without_batch(part: Part) -> Part:
    """Return a part whose number of images is fixed."""
    axes = {
        name: {
            axis: label
            for axis, label in found.items()
            if stem_of(label) != BATCH
        }
        for name, found in part.dynamic_axes.items()
    }
    return replace(part, dynamic_axes=axes)


def one_by_one(
    given: Sequence[tuple[Tensor, ...]],
) -> list[tuple[Tensor, ...]]:
    """Return inputs of batches as inputs of single images."""
    return [
        tuple(tensor[i : i + 1] for tensor in tensors)
        for tensors in given
        for i in range(len(tensors[0]))
    ]
