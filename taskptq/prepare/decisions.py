"""What ``prepare`` decided on a model's structure, as plain data.

A quantized file keeps it, so that a restored model gets the same structure
without any data.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from taskptq.prepare.fuse import former_pairs, state_names
from taskptq.prepare.output_record import read_output_grids
from taskptq.prepare.product_record import read_owner

# No model of this field comes near: what is larger was not written by us.
MAX_ENTRIES = 100_000
MAX_CHARACTERS = 1000


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """How the structure of a prepared model follows from the float one.

    Names are qualified names in the float model.

    Args:
        folded: (layer, norm) pairs: the norm is folded into the layer.
        baked: Layers whose computed weight (weight norm, standardization)
            was made a plain parameter.
        untied: Parameters that got their own copy of what several layers
            shared, as ``layer.parameter``.
        left_float: Layers that a check left float, with the reason.
        kept_norms: Norms that were not folded, with the reason.
        products: Modules whose own products are quantized, with their
            points; see ``taskptq.prepare.product_owners``.
        outputs: Grids on the outputs of modules; see
            ``taskptq.prepare.output_grids``.
    """

    folded: tuple[tuple[str, str], ...] = ()
    baked: tuple[str, ...] = ()
    untied: tuple[str, ...] = ()
    left_float: Mapping[str, str] = field(default_factory=dict)
    kept_norms: Mapping[str, str] = field(default_factory=dict)
    products: tuple[Mapping[str, Any], ...] = ()
    outputs: tuple[Mapping[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        return {
            'folded': [list(pair) for pair in self.folded],
            'baked': list(self.baked),
            'untied': list(self.untied),
            'left_float': dict(self.left_float),
            'kept_norms': dict(self.kept_norms),
            # Left out, so that earlier versions read files without them.
            **(
                {'products': [dict(owner) for owner in self.products]}
                if self.products
                else {}
            ),
            **(
                {'outputs': [dict(grid) for grid in self.outputs]}
                if self.outputs
                else {}
            ),
        }

    def with_left_float(self, reasons: Mapping[str, str]) -> Decisions:
        """Return these decisions with further layers left float."""
        return replace(self, left_float={**self.left_float, **reasons})

    @classmethod
    def from_dict(cls, content: Any) -> Decisions:
        """Read the plain form, which may come from a stranger's file.

        Raises:
            ValueError: If a key, a type or a size is not as ``to_dict``
                writes it.
        """
        keys = set(cls.__dataclass_fields__)
        if isinstance(content, Mapping):
            content = {'products': [], 'outputs': [], **content}
        if not isinstance(content, Mapping) or set(content) != keys:
            raise ValueError(
                f'decisions must be a dict of {", ".join(sorted(keys))}'
            )
        for key in sorted(keys):
            _check_size(key, content[key])
        return cls(
            folded=_pairs('folded', content['folded']),
            baked=_names('baked', content['baked']),
            untied=_names('untied', content['untied']),
            left_float=_reasons('left_float', content['left_float']),
            kept_norms=_reasons('kept_norms', content['kept_norms']),
            products=tuple(read_owner(entry) for entry in content['products']),
            outputs=read_output_grids(content['outputs']),
        )

    @classmethod
    def inferred(
        cls, model: nn.Module, stored_names: Collection[str]
    ) -> Decisions:
        """Return the decisions behind a file that does not state them.

        Files of schema 1 were written when pairs were found by names alone:
        such a pair was folded if the file has no state of its norm.

        Args:
            model: Float model of the same config.
            stored_names: State-dict keys that the file has.
        """
        stored = set(stored_names)
        return cls(
            folded=tuple(
                (layer, norm)
                for layer, norm in former_pairs(model)
                if not stored & state_names(model, norm)
            )
        )


def _check_size(key: str, value: Any) -> None:
    if not isinstance(value, list | tuple | Mapping):
        raise ValueError(
            f'decisions.{key} is a {type(value).__name__}, not a list or dict'
        )
    if len(value) > MAX_ENTRIES:
        raise ValueError(
            f'decisions.{key} has {len(value)} entries, more than the '
            f'{MAX_ENTRIES} allowed'
        )


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_CHARACTERS:
        raise ValueError(
            f'decisions.{key} holds a {type(value).__name__} that is not a '
            f'text of at most {MAX_CHARACTERS} characters'
        )
    return value


def _names(key: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, Mapping):
        raise ValueError(f'decisions.{key} is a dict, not a list')
    names = tuple(_text(key, name) for name in value)
    if len(set(names)) != len(names):
        raise ValueError(f'decisions.{key} names a layer twice')
    return names


def _pairs(key: str, value: Any) -> tuple[tuple[str, str], ...]:
    if isinstance(value, Mapping):
        raise ValueError(f'decisions.{key} is a dict, not a list')
    for pair in value:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise ValueError(
                f'decisions.{key} holds a {type(pair).__name__} that is not '
                'a pair of names'
            )
    pairs = tuple((_text(key, a), _text(key, b)) for a, b in value)
    for names in zip(*pairs, strict=True):
        if len(set(names)) != len(names):
            raise ValueError(f'decisions.{key} names a layer twice')
    return pairs


def _reasons(key: str, value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ValueError(f'decisions.{key} is a list, not a dict')
    return {
        _text(key, name): _text(key, reason) for name, reason in value.items()
    }
