"""The class logits among the raw outputs of a head."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor

from taskptq.engine.adapters import Adapter, name_tensors
from taskptq.engine.detr_adapters import DetrAdapter

__all__ = ['class_logits']


def class_logits(output: Any, *, adapter: Adapter) -> Any:
    """Return the logits of a head's output, and nothing of boxes or lines.

    Args:
        output: What the head's forward returned.
        adapter: Adapter of the model; its ``head_kinds`` tell logits apart.

    Returns:
        A tensor, or nested tensors; channels are classes.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(adapter, DetrAdapter):
        # Layers are stacked in front, and only the last one is decoded.
        return output[0][-1]
    if isinstance(output, Mapping):
        kinds: Mapping[str, str] = getattr(adapter, 'head_kinds', {})
        return {
            name: tensor
            for name, tensor in name_tensors(output)
            if _kind(name, kinds) == 'confidence'
        }
    # Dense heads return scores, then boxes.
    return output[0]


def _kind(name: str, kinds: Mapping[str, str]) -> str:
    return next(
        (kind for form, kind in kinds.items() if fnmatchcase(name, form)), ''
    )
