"""Functions of torch that multiply two tensors, and where their operands are.

Only functions that reach ``__torch_function__`` are listed. Elementwise
products are none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Place = tuple[int, str]
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class ProductCall:
    """How one function takes its operands.

    Args:
        name: What reports call it.
        places: Position and keyword of each operand.
        axes: Axis of each operand that becomes the output channels if that
            operand is a weight; None if it has no such axis.
    """

    name: str
    places: tuple[Place, ...]
    axes: tuple[int | None, ...]

    @cached_property
    def _in_order(self) -> bool:
        positions = [position for position, _ in self.places]
        return positions == list(range(len(positions)))

    def operands(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> list[Tensor]:
        """Return the operands; nothing if one of them is not a float tensor.

        Args:
            args: Positional arguments of the call.
            kwargs: Its keyword arguments.
        """
        given = len(args)
        found: list[Any] = [
            args[position] if position < given else kwargs.get(keyword)
            for position, keyword in self.places
        ]
        for value in found:
            if not _is_operand(value):
                return []
        return found

    def replaced(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        operands: Sequence[Tensor],
    ) -> Arguments:
        """Return the arguments with other operands.

        Args:
            args: Positional arguments of the call.
            kwargs: Its keyword arguments.
            operands: As many as :meth:`operands` returns.
        """
        if len(args) == len(operands) and not kwargs and self._in_order:
            return tuple(operands), {}
        new, named = list(args), dict(kwargs)
        for (position, keyword), operand in zip(
            self.places, operands, strict=True
        ):
            if position < len(new):
                new[position] = operand
            else:
                named[keyword] = operand
        return tuple(new), named

    def output_axes(self, args: Sequence[Any]) -> tuple[int | None, ...]:
        """Return ``axes`` for the arguments of one call."""
        return self.axes

    def signature(self, operands: Sequence[Tensor]) -> str:
        """Return what tells apart calls from one place in the code."""
        return ''


@dataclass(frozen=True)
class ConvCall(ProductCall):
    """A convolution: a loop over its layers calls it with other channels."""

    def signature(self, operands: Sequence[Tensor]) -> str:
        """Return the input channels of one filter."""
        transposed = self.axes[1] == 1
        return f'{operands[1].shape[0 if transposed else 1]}'


@dataclass(frozen=True)
class EinsumCall(ProductCall):
    """``einsum(equation, *operands)`` or ``einsum(equation, operands)``."""

    def operands(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> list[Tensor]:
        """Return both operands; nothing unless there are two."""
        if len(args) < 2 or not isinstance(args[0], str):
            return []
        found = list(args[1]) if _is_list(args[1]) else list(args[1:])
        return (
            found if len(found) == 2 and all(map(_is_operand, found)) else []
        )

    def replaced(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        operands: Sequence[Tensor],
    ) -> Arguments:
        """Return the arguments with other operands."""
        return (args[0], *operands), dict(kwargs)

    def output_axes(self, args: Sequence[Any]) -> tuple[int | None, ...]:
        """Return the last axis of each operand that only the output has."""
        inputs, _, output = args[0].replace(' ', '').partition('->')
        terms = inputs.split(',')
        if '.' in inputs or len(terms) != 2:
            return (None, None)
        return tuple(
            max(
                (
                    axis
                    for axis, letter in enumerate(own)
                    if letter in output and letter not in other
                ),
                default=None,
            )
            for own, other in (terms, terms[::-1])
        )


def _is_operand(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.layout == torch.strided
        and not value.is_nested
    )


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _matrices(first: str, second: str, *, at: int = 0) -> ProductCall:
    """(..., N, K) times (..., K, M)."""
    places = ((at, first), (at + 1, second))
    return ProductCall('matmul', places, (-2, -1))


def _conv(name: str, *, transposed: bool = False) -> ProductCall:
    places = ((0, 'input'), (1, 'weight'))
    return ConvCall(name, places, (None, 1 if transposed else 0))


_VECTORS = ProductCall('mv', ((0, 'input'), (1, 'vec')), (-2, None))
_ADDED = _matrices('mat1', 'mat2', at=1)
_ADDED_BATCHES = _matrices('batch1', 'batch2', at=1)
ATTENTION = ProductCall(
    'attention', ((0, 'query'), (1, 'key'), (2, 'value')), (None, None, None)
)
# Function -> how it takes its operands.
CALLS: dict[Callable[..., Any], ProductCall] = {
    torch.matmul: _matrices('input', 'other'),
    Tensor.matmul: _matrices('self', 'other'),
    Tensor.__matmul__: _matrices('self', 'other'),
    Tensor.__rmatmul__: ProductCall(
        'matmul', ((1, 'other'), (0, 'self')), (-2, -1)
    ),
    torch.mm: _matrices('input', 'mat2'),
    Tensor.mm: _matrices('self', 'mat2'),
    torch.bmm: _matrices('input', 'mat2'),
    Tensor.bmm: _matrices('self', 'mat2'),
    torch.mv: _VECTORS,
    Tensor.mv: _VECTORS,
    torch.addmm: _ADDED,
    Tensor.addmm: _ADDED,
    Tensor.addmm_: _ADDED,
    torch.baddbmm: _ADDED_BATCHES,
    Tensor.baddbmm: _ADDED_BATCHES,
    Tensor.baddbmm_: _ADDED_BATCHES,
    torch.addbmm: _ADDED_BATCHES,
    Tensor.addbmm: _ADDED_BATCHES,
    Tensor.addbmm_: _ADDED_BATCHES,
    torch.tensordot: ProductCall(
        'tensordot', ((0, 'a'), (1, 'b')), (None, None)
    ),
    torch.einsum: EinsumCall('einsum', (), ()),
    F.linear: ProductCall('linear', ((0, 'input'), (1, 'weight')), (None, 0)),
    torch.conv1d: _conv('conv1d'),
    torch.conv2d: _conv('conv2d'),
    torch.conv3d: _conv('conv3d'),
    torch.conv_transpose1d: _conv('conv_transpose1d', transposed=True),
    torch.conv_transpose2d: _conv('conv_transpose2d', transposed=True),
    torch.conv_transpose3d: _conv('conv_transpose3d', transposed=True),
    F.scaled_dot_product_attention: ATTENTION,
}
