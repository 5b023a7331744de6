"""Forms in ONNX of operators that torch's exporter does not write."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.onnx.errors import SymbolicValueError
from torch.onnx.symbolic_helper import parse_args
from torch.onnx.utils import (
    register_custom_op_symbolic as register,
)
from torch.onnx.utils import (
    unregister_custom_op_symbolic as unregister,
)

__all__ = ['own_symbolics', 'window_means']

OPSET = 9


@contextmanager
def own_symbolics() -> Iterator[None]:
    """Let torch.onnx.export write the operators of this file."""
    for name, symbolic in SYMBOLICS.items():
        register(name, symbolic, OPSET)
    try:
        yield
    finally:
        for name in SYMBOLICS:
            unregister(name, OPSET)


def power_of_two(g: Any, x: Any) -> Any:
    """Write 2^x."""
    two = g.op('Constant', value_t=torch.tensor(2.0))
    return g.op('Pow', two, x)


@parse_args('v', 'is')
def adaptive_mean(g: Any, x: Any, size: list[int]) -> Any:
    """Write adaptive average pooling over windows of any size.

    Windows that are all as large are a pooling; others, as of a pyramid's 6 x
    6 bins on a map of 8 x 8, are a product with a matrix on each side.

    Args:
        g: The exporter's graph.
        x: (N, C, H, W).
        size: Height and width of the result.

    Raises:
        SymbolicValueError: If height or width of the input is unknown.
    """
    if size == [1, 1]:
        return g.op('GlobalAveragePool', x)
    sides = (x.type().varyingSizes() or [None, None])[-2:]
    if None in sides:
        raise SymbolicValueError(
            'adaptive average pooling needs a fixed input size', x
        )
    if all(n % m == 0 for n, m in zip(sides, size, strict=True)):
        window = [n // m for n, m in zip(sides, size, strict=True)]
        return g.op('AveragePool', x, kernel_shape_i=window, strides_i=window)
    rows, columns = (
        window_means(n, m) for n, m in zip(sides, size, strict=True)
    )
    x = g.op('MatMul', g.op('Constant', value_t=rows), x)
    return g.op('MatMul', x, g.op('Constant', value_t=columns.T.contiguous()))


def window_means(length: int, bins: int) -> Tensor:
    """Return the matrix that takes the mean of each window of a line.

    Window i of adaptive pooling covers floor(i * length / bins) up to, but
    not including, ceil((i + 1) * length / bins).

    >>> window_means(3, 2)
    tensor([[0.5000, 0.5000, 0.0000],
            [0.0000, 0.5000, 0.5000]])

    Args:
        length: Number of values.
        bins: Number of windows.

    Returns:
        (bins, length).
    """
    means = torch.zeros(bins, length)
    for i in range(bins):
        start, end = i * length // bins, -(-(i + 1) * length // bins)
        means[i, start:end] = 1 / (end - start)
    return means


SYMBOLICS: Mapping[str, Callable[..., Any]] = {
    'aten::exp2': power_of_two,
    'aten::adaptive_avg_pool2d': adaptive_mean,
}
