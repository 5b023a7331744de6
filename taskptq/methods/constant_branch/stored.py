"""A module's output as buffers, in place of the module."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ['Form', 'StoredOutput', 'put', 'read_form']

# Most numbers of one tensor: 900 queries of 256 channels are a quarter.
MAX_VALUES = 2**20
MAX_TENSORS = 8
# A counterpart to the number of images among the arguments of a call.
Source = tuple[int | str, int]


@dataclass(frozen=True, kw_only=True)
class Form:
    """Shape of an output that is the same for all images.

    Args:
        name: Qualified name of the module.
        shapes: Shape of each of its tensors for a single image; None is an
            element that is None.
        axes: Axis of each tensor that counts the images; None if there is
            none, or for an element that is None.
        single: Whether the output is a tensor rather than a tuple.
        source: An argument, by position or name, and its axis that counts
            the images; None if no tensor has such an axis.
    """

    name: str
    shapes: tuple[tuple[int, ...] | None, ...]
    axes: tuple[int | None, ...]
    single: bool
    source: Source | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        return {
            'name': self.name,
            'shapes': [None if s is None else list(s) for s in self.shapes],
            'axes': list(self.axes),
            'single': self.single,
            'source': None if self.source is None else list(self.source),
        }


class StoredOutput(nn.Module):
    """Returns what a module would, whatever its arguments are.

    Args:
        form: Shape of the output.
        device: Where its memory lies.
    """

    def __init__(self, form: Form, *, device: Any = None) -> None:
        super().__init__()
        self.form = form
        for number, shape in enumerate(form.shapes):
            value = None
            if shape is not None:
                value = torch.zeros(shape, device=device)
            self.register_buffer(f'value{number}', value)

    @torch.no_grad()
    def store(self, values: list[Tensor | None]) -> None:
        """Set the output for a single image."""
        for number, value in enumerate(values):
            if value is not None:
                getattr(self, f'value{number}').copy_(value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the output for as many images as the arguments are of."""
        count = None
        if self.form.source is not None:
            where, axis = self.form.source
            given = args[where] if isinstance(where, int) else kwargs[where]
            count = given.shape[axis]
        found = tuple(
            self._value(number, count)
            for number in range(len(self.form.shapes))
        )
        return found[0] if self.form.single else found

    def _value(self, number: int, count: Any) -> Tensor | None:
        value: Tensor | None = getattr(self, f'value{number}')
        if value is None:
            return None
        axis = self.form.axes[number]
        if axis is not None:
            sizes = list(value.shape)
            sizes[axis] = count
            value = value.expand(sizes)
        # What follows may write to it.
        return value.clone()

    def extra_repr(self) -> str:
        """Show the shapes in ``print(model)``."""
        return ', '.join(str(list(s)) for s in self.form.shapes if s)


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of another."""
    parent, _, own = name.rpartition('.')
    setattr(model.get_submodule(parent), own, module)


def read_form(model: nn.Module, plain: Any) -> Form:
    """Read what :meth:`Form.to_dict` wrote, and check that it fits.

    Args:
        model: The model.
        plain: From a file, not trusted.

    Raises:
        ValueError: If it is malformed or does not fit the model.
    """
    keys = set(Form.__dataclass_fields__)
    if not isinstance(plain, Mapping) or set(plain) != keys:
        raise ValueError('a stored output is malformed')
    name = plain['name']
    if not isinstance(name, str) or name not in dict(model.named_modules()):
        raise ValueError(f'{str(name)[:100]!r} is no module to store')
    shapes, axes = plain['shapes'], plain['axes']
    whole = isinstance(shapes, list | tuple) and isinstance(axes, list | tuple)
    if not name or not whole or not 0 < len(shapes) <= MAX_TENSORS:
        raise ValueError(f'the stored output of {name!r} is malformed')
    if len(axes) != len(shapes) or not all(map(_is_tensor, shapes, axes)):
        raise ValueError(f'the stored output of {name!r} has no valid shape')
    source = _read_source(plain['source'])
    single = plain['single']
    if type(single) is not bool or (single and len(shapes) != 1):
        raise ValueError(f'the stored output of {name!r} is malformed')
    if source is None and any(axis is not None for axis in axes):
        raise ValueError(f'the stored output of {name!r} counts no images')
    return Form(
        name=name,
        shapes=tuple(None if s is None else tuple(s) for s in shapes),
        axes=tuple(axes),
        single=single,
        source=source,
    )


def _is_tensor(shape: Any, axis: Any) -> bool:
    """Whether a shape and the axis of the images go together."""
    if shape is None:
        return axis is None
    if not isinstance(shape, list | tuple) or not 0 < len(shape) <= 8:
        return False
    if not all(type(n) is int and 0 < n <= MAX_VALUES for n in shape):
        return False
    if math.prod(shape) > MAX_VALUES:
        return False
    if axis is None:
        return True
    return type(axis) is int and 0 <= axis < len(shape) and shape[axis] == 1


def _read_source(plain: Any) -> Source | None:
    if plain is None:
        return None
    if isinstance(plain, list | tuple) and len(plain) == 2:
        where, axis = plain
        position = type(where) is int and 0 <= where < 64
        named = isinstance(where, str) and where.isidentifier()
        if (position or named) and type(axis) is int and 0 <= axis < 8:
            return where, axis
    raise ValueError('a stored output names no argument that counts images')
