"""Sizes that hosts turn into Python numbers stay in a traced graph."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

__all__ = ['TracedInt', 'traced_sizes']

# Packages whose code computes sizes that a trace records by itself.
OWN = ('torch', 'taskptq', 'builtins')


class _TracedIntMeta(type):
    """Makes a class that stands in for ``int``."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and isinstance(args[0], Tensor) and not kwargs:
            # Rounds towards 0, as int() does.
            return args[0].to(torch.int64)
        return int(*args, **kwargs)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, int)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, int)


class TracedInt(metaclass=_TracedIntMeta):
    """``int`` that keeps tensors of one element tensors.

    >>> TracedInt('7'), TracedInt(torch.tensor(2.7)), isinstance(3, TracedInt)
    (7, tensor(2), True)
    """


@contextmanager
def traced_sizes(network: nn.Module) -> Iterator[None]:
    """Let ``int(size)`` in a network's own code stay a part of a trace.

    While torch traces, sizes are tensors, and ``int`` freezes them: Swin
    counts its images by ``int(windows.shape[0] / ...)``, and the graph then
    computes something else for any other number of images.

    Args:
        network: Network that is traced; the files that define its modules
            see another ``int``.
    """
    names = {
        cls.__module__
        for module in network.modules()
        for cls in type(module).__mro__
        if cls.__module__.partition('.')[0] not in OWN
    }
    with ExitStack() as stack:
        for name in sorted(names):
            module = sys.modules.get(name)
            if module is not None and 'int' not in vars(module):
                stack.enter_context(
                    mock.patch.object(module, 'int', TracedInt, create=True)
                )
        yield
