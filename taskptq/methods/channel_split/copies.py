"""Give channels between layers several copies, in place.

A channel of T copies carries 1 / T of its value in each: the giver's row is
divided by T and repeated, the readers' columns are repeated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ['MAX_COPIES', 'Copies', 'apply_copies', 'read_copies']

# A channel of more is better scaled.
MAX_COPIES = 16


@dataclass(frozen=True, kw_only=True)
class Copies:
    """Copies of the channels between a giver and its readers.

    Args:
        giver: Name of the Linear or Conv2d whose rows are repeated.
        norm: Name of the BatchNorm behind it; empty without one.
        readers: Names of the Linear and Conv2d whose columns are.
        counts: (C,), copies of each channel, 1 is the channel as it is.
    """

    giver: str
    norm: str
    readers: tuple[str, ...]
    counts: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        plain = asdict(self)
        return {
            **plain,
            'readers': list(self.readers),
            'counts': list(self.counts),
        }


def read_copies(model: nn.Module, plain: Any) -> Copies:
    """Read what :meth:`Copies.to_dict` wrote, and check that it fits.

    Args:
        model: The model.
        plain: From a file, not trusted.

    Raises:
        ValueError: If it does not fit the model.
    """
    modules = dict(model.named_modules())
    if not isinstance(plain, Mapping) or set(plain) != {
        'giver',
        'norm',
        'readers',
        'counts',
    }:
        raise ValueError('copies of channels are malformed')
    giver, norm, readers, counts = (
        plain[key] for key in ('giver', 'norm', 'readers', 'counts')
    )
    if not isinstance(readers, list | tuple) or not readers:
        raise ValueError('copied channels have no readers')
    for name in (giver, *readers):
        if not isinstance(name, str) or not is_dense(modules.get(name)):
            raise ValueError(
                f'{str(name)[:100]!r} is no layer whose channels could be '
                'copied'
            )
    size = len(_weight(modules[giver]))
    if norm != '' and not (
        isinstance(norm, str)
        and isinstance(modules.get(norm), nn.BatchNorm2d)
        and modules[norm].num_features == size
    ):
        raise ValueError(f'{str(norm)[:100]!r} does not normalize {giver!r}')
    sizes = [_weight(modules[name]).shape[1] for name in readers]
    if (
        not isinstance(counts, list | tuple)
        or [len(counts)] * (len(sizes) + 1) != [size, *sizes]
        or not all(type(n) is int and 1 <= n <= MAX_COPIES for n in counts)
        or sum(counts) > 2 * size
    ):
        raise ValueError(f'the copies of the channels of {giver!r} do not fit')
    return Copies(
        giver=giver, norm=norm, readers=tuple(readers), counts=tuple(counts)
    )


def is_dense(module: object) -> bool:
    """Whether a layer can take copies: a Linear, or a Conv2d of one group."""
    if isinstance(module, nn.Conv2d):
        return module.groups == 1
    return isinstance(module, nn.Linear)


@torch.no_grad()
def apply_copies(model: nn.Module, copies: Copies) -> None:
    """Repeat rows and columns; the output stays.

    Args:
        model: Float model, changed in place.
        copies: Fitting its layers.
    """
    giver = model.get_submodule(copies.giver)
    counts = torch.tensor(copies.counts)
    index = torch.repeat_interleave(torch.arange(len(counts)), counts)
    parts = counts[index].double()
    if copies.norm:
        norm = model.get_submodule(copies.norm)
        _repeat(giver, 'weight', index)
        _repeat(giver, 'bias', index)
        for name in ('running_mean', 'running_var'):
            _repeat(norm, name, index)
        for name in ('weight', 'bias'):
            _repeat(norm, name, index, divisor=parts)
        _set(norm, 'num_features', len(index))
    else:
        for name in ('weight', 'bias'):
            _repeat(giver, name, index, divisor=parts)
    _resize(giver, 'out', len(index))
    for name in copies.readers:
        reader = model.get_submodule(name)
        _repeat(reader, 'weight', index, axis=1)
        _resize(reader, 'in', len(index))


def _repeat(
    module: nn.Module,
    name: str,
    index: Tensor,
    *,
    axis: int = 0,
    divisor: Tensor | None = None,
) -> None:
    """Repeat the rows (or columns) of a parameter or buffer."""
    old = getattr(module, name)
    if old is None:
        return
    new = old.detach().index_select(axis, index.to(old.device))
    if divisor is not None:
        shape = (-1, *[1] * (new.dim() - 1))
        new = new.double() / divisor.to(new.device).reshape(shape)
    new = new.to(old.dtype)
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(new, requires_grad=old.requires_grad)
    setattr(module, name, new)


def _resize(module: nn.Module, side: str, size: int) -> None:
    kind = 'features' if isinstance(module, nn.Linear) else 'channels'
    _set(module, f'{side}_{kind}', size)


def _set(module: nn.Module, name: str, size: int) -> None:
    setattr(module, name, size)


def _weight(module: Any) -> Tensor:
    weight: Tensor = module.weight
    return weight


def tensors_of(
    model: nn.Module, changes: Sequence[Copies]
) -> dict[tuple[str, str], Any]:
    """Return all that :func:`apply_copies` changes, to put it back.

    Args:
        model: The model.
        changes: What may be applied.

    Returns:
        (module, attribute) -> value.
    """
    names = {
        name
        for one in changes
        for name in (one.giver, one.norm, *one.readers)
        if name
    }
    found = {}
    for name in names:
        module = model.get_submodule(name)
        for attribute in (
            'weight',
            'bias',
            'running_mean',
            'running_var',
            'num_features',
            'in_features',
            'out_features',
            'in_channels',
            'out_channels',
        ):
            if hasattr(module, attribute):
                found[name, attribute] = getattr(module, attribute)
    return found


def put_back(model: nn.Module, before: Mapping[tuple[str, str], Any]) -> None:
    """Undo :func:`apply_copies`, by what :func:`tensors_of` returned."""
    for (name, attribute), value in before.items():
        setattr(model.get_submodule(name), attribute, value)
