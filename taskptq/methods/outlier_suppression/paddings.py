"""Paddings on the way from a norm to its readers, with its value of zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from taskptq.core.settings import Whole
from taskptq.methods.outlier_suppression.norm_groups import NormGroup
from taskptq.methods.rewriting.verified_rewrite import RowEdit
from taskptq.modules.channel_padding import ChannelPadding
from taskptq.prepare.tree import open_modules

__all__ = ['Paddings', 'replay_paddings']

# Far more channels than any norm has.
MAX_CHANNELS = 1 << 20


class Paddings:
    """The modules of a model that pad the outputs of norms.

    Args:
        model: Float model; what pads holds its value from now on, 0 at first.
        groups: Norms and their readers.
    """

    def __init__(self, model: nn.Module, groups: Sequence[NormGroup]) -> None:
        modules = dict(model.named_modules())
        self._found = {
            group.name: {
                name: ChannelPadding(
                    modules[name], channels=group.norm.normalized_shape[0]
                )
                for name in group.padders
            }
            for group in groups
        }

    def edits(
        self, norm: str, *, scales: Tensor, shift: Tensor | None
    ) -> list[RowEdit]:
        """Return the edits that pad what 0 becomes, ``-z / s``.

        Args:
            norm: Name of the norm.
            scales: (C,), s.
            shift: (C,), z; None is 0, which stays 0.
        """
        if shift is None:
            return []
        return [
            RowEdit.to(padding.value, -shift / scales)
            for padding in self._found[norm].values()
        ]

    def settle(self) -> dict[str, Any]:
        """Let what pads zeros be as it was; return the structure of others."""
        names = {}
        for found in self._found.values():
            for name, padding in found.items():
                if bool(padding.value.any()):
                    names[name] = len(padding.value)
                else:
                    padding.remove()
        return {'paddings': names} if names else {}


def replay_paddings(model: nn.Module, structure: Mapping[str, Any]) -> None:
    """Let the modules of a file pad values of their own.

    Args:
        model: Float model.
        structure: Holds ``paddings``, module name -> channels.

    Raises:
        ValueError: If a name is no module, or a number no channel count.
    """
    given = structure.get('paddings')
    modules = dict(open_modules(model))
    if not isinstance(given, Mapping) or not 0 < len(given) <= len(modules):
        raise ValueError('modules that pad values of their own are missing')
    channels = Whole(low=1, high=MAX_CHANNELS)
    for name, number in given.items():
        if name not in modules:
            raise ValueError(
                f'{str(name)[:100]!r} is to pad a value of its own, but the '
                'model has no such module'
            )
        read = channels.read(number, name=f'paddings[{name!r}]')
        ChannelPadding(modules[name], channels=read)
