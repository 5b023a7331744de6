"""Follow the images of a batch through a pass, operator by operator.

An output that never changes may still be computed from the images, as that of
a ReLU that is 0 on all that was seen. Such an output is not to be stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ['ImageReach', 'tensors_in']

# What reads of a tensor nothing but its type and shape.
_SHAPES = ('new_', 'empty_like', 'zeros_like', 'ones_like', 'full_like')


class ImageReach(TorchDispatchMode):
    """Knows which memory holds what was computed from the images.

    Args:
        images: The images.
    """

    def __init__(self, images: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._reached = {_memory(image) for image in images}

    def __contains__(self, tensor: Tensor) -> bool:
        """Whether a tensor depends on the images."""
        return _memory(tensor) in self._reached

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Keeping torch.compile out would import all of it, for 3 s.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operator and note what it gave."""
        kwargs = kwargs or {}
        read = any(x in self for x in tensors_in((args, kwargs)))
        read = read and not any(f'.{name}' in str(func) for name in _SHAPES)
        out = func(*args, **kwargs)
        if read:
            self._reached |= {_memory(x) for x in tensors_in(out)}
            self._reached |= _written(func, args)
        return out


def _written(func: Any, args: Any) -> set[Any]:
    """Return the memory of the arguments that an operator writes to."""
    arguments = func._schema.arguments
    return {
        _memory(x)
        for argument, value in zip(arguments, args, strict=False)
        if argument.alias_info is not None and argument.alias_info.is_write
        for x in tensors_in(value)
    }


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """Yield the tensors of nested tuples, lists and dicts."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from tensors_in(item)
    elif isinstance(tree, dict):
        yield from tensors_in(list(tree.values()))


def _memory(tensor: Tensor) -> Any:
    """Return what views of the same memory have in common.

    It does not keep the memory, but its number, which nothing else gets.
    """
    if tensor.layout != torch.strided or tensor.is_nested:
        return None
    return StorageWeakRef(tensor.untyped_storage())
