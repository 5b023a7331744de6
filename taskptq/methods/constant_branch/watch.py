"""What modules returned in a pass, and which of it never changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.calibration.calibrate import calibration_mode
from taskptq.methods.constant_branch.reach import ImageReach, tensors_in
from taskptq.methods.constant_branch.stored import (
    MAX_TENSORS,
    MAX_VALUES,
    Form,
    Source,
)
from taskptq.methods.constant_branch.variants import images_of
from taskptq.methods.rewriting.statistics import open_attention

__all__ = ['OnlyCall', 'compare_numbers', 'same', 'unreached', 'watch']

# Largest difference, relative to the largest magnitude, that sums of another
# order make: a matrix product of more images may run in other blocks.
TOLERANCE = 1e-5


@dataclass(kw_only=True)
class OnlyCall:
    """The only call of a module in a pass.

    Args:
        values: Tensors of its output, copied; None for an element None.
        single: Whether the output is a tensor rather than a tuple.
        sizes: Shapes of the arguments that are tensors.
    """

    values: list[Tensor | None]
    single: bool
    sizes: dict[int | str, tuple[int, ...]] = field(default_factory=dict)


def watch(
    model: nn.Module, batch: Any, *, forward: Any, names: Sequence[str]
) -> dict[str, OnlyCall]:
    """Run a batch and return the calls of modules that may stay the same.

    Without modules that are called several times, or return something but a
    few small tensors.

    Args:
        model: Float model.
        batch: Collated batch.
        forward: Runs the model on it.
        names: The modules.
    """
    found: dict[str, OnlyCall | None] = {}

    def after(name: str) -> Callable[..., None]:
        def hook(_module: Any, args: Any, kwargs: Any, output: Any) -> None:
            found[name] = (
                None if name in found else _call(args, kwargs, output)
            )

        return hook

    with ExitStack() as stack:
        for name in names:
            handle = model.get_submodule(name).register_forward_hook(
                after(name), with_kwargs=True
            )
            stack.callback(handle.remove)
        stack.enter_context(calibration_mode(model))
        stack.enter_context(open_attention())
        forward(model, batch)
    return {name: call for name, call in found.items() if call is not None}


def unreached(
    model: nn.Module, batch: Any, *, forward: Any, names: Sequence[str]
) -> set[str]:
    """Return the modules whose output is not computed from the images.

    Args:
        model: Float model.
        batch: Collated batch.
        forward: Runs the model on it.
        names: The modules.
    """
    reach = ImageReach(images_of(batch))
    free = set(names)

    def after(name: str) -> Callable[..., None]:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            if any(x in reach for x in tensors_in(output)):
                free.discard(name)

        return hook

    with ExitStack() as stack:
        for name in names:
            handle = model.get_submodule(name).register_forward_hook(
                after(name)
            )
            stack.callback(handle.remove)
        stack.enter_context(calibration_mode(model))
        stack.enter_context(open_attention())
        stack.enter_context(reach)
        forward(model, batch)
    return free


def _call(
    args: Sequence[Any], kwargs: Mapping[str, Any], output: Any
) -> OnlyCall | None:
    single = isinstance(output, Tensor)
    elements = (output,) if single else output
    if type(elements) is not tuple or len(elements) > MAX_TENSORS:
        return None
    values: list[Tensor | None] = []
    for element in elements:
        if isinstance(element, Tensor):
            fits = element.dtype == torch.float32 and element.dim()
            if not fits or not 0 < element.numel() <= MAX_VALUES:
                return None
            element = element.detach().cpu().clone()
        elif element is not None:
            return None
        values.append(element)
    if all(value is None for value in values):
        return None
    named: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    return OnlyCall(
        values=values,
        single=single,
        sizes={
            where: tuple(value.shape)
            for where, value in named
            if isinstance(value, Tensor)
        },
    )


def same(call: OnlyCall, other: OnlyCall) -> bool:
    """Whether two calls returned the same bits."""
    pairs = list(zip(call.values, other.values, strict=False))
    return len(call.values) == len(other.values) and all(
        (a is None and b is None)
        or (a is not None and b is not None and torch.equal(a, b))
        for a, b in pairs
    )


def compare_numbers(
    name: str, call: OnlyCall, other: OnlyCall, *, images: tuple[int, int]
) -> tuple[Form, list[Tensor | None]] | None:
    """Return what both calls returned for each image, or None if that differs.

    Args:
        name: Qualified name of the module.
        call: Its call.
        other: Its call with another number of images.
        images: Both numbers.
    """
    if len(call.values) != len(other.values) or call.single != other.single:
        return None
    values: list[Tensor | None] = []
    axes: list[int | None] = []
    for pair in zip(call.values, other.values, strict=True):
        found = _one_image(pair, images)
        if found is None:
            return None
        values.append(found[0])
        axes.append(found[1])
    source = None
    if any(axis is not None for axis in axes):
        source = next(_sources(call, other, images), None)
        if source is None:
            return None
    shapes = tuple(None if v is None else tuple(v.shape) for v in values)
    form = Form(
        name=name,
        shapes=shapes,
        axes=tuple(axes),
        single=call.single,
        source=source,
    )
    return form, values


def _one_image(
    pair: tuple[Tensor | None, Tensor | None], images: tuple[int, int]
) -> tuple[Tensor | None, int | None] | None:
    """Return the part of one image, and the axis that counts images."""
    one, two = pair
    if one is None or two is None:
        return (None, None) if one is two else None
    if one.shape == two.shape:
        return (one, None) if _close(one, two) else None
    if one.dim() != two.dim():
        return None
    both = list(zip(one.shape, two.shape, strict=True))
    unlike = [axis for axis, (a, b) in enumerate(both) if a != b]
    if len(unlike) != 1 or both[unlike[0]] != images:
        return None
    (axis,) = unlike
    first = one.narrow(axis, 0, 1)
    if not (_close(first, one) and _close(first, two)):
        return None
    return first.contiguous(), axis


def _close(expected: Tensor, found: Tensor) -> bool:
    gap = (expected - found).abs().max()
    return bool(gap <= TOLERANCE * expected.abs().max())


def _sources(
    call: OnlyCall, other: OnlyCall, images: tuple[int, int]
) -> Iterator[Source]:
    """Yield the arguments' axes that count images in both calls."""
    for where, shape in call.sizes.items():
        second = other.sizes.get(where, ())
        if len(second) != len(shape):
            continue
        for axis, sizes in enumerate(zip(shape, second, strict=True)):
            if sizes == images:
                yield where, axis
