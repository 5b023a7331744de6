"""All crafted files."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from . import (
    containers,
    grids,
    misfits,
    pickles,
    recipes,
    structures,
    training,
)
from .case import Case

__all__ = ['all_cases', 'is_wide', 'select']

# Some of each kind, given to every tool. The others go to one or two.
WIDE = (
    'pickle-*',
    'container-cut-half',
    'container-cut-all',
    'container-flip-directory',
    'container-bomb-*',
    'container-overlapping',
    'container-twice',
    'container-pickle-bytearray',
    'container-pickle-kept-lists',
    'container-pickle-memo-index',
    'container-storage-beyond-record',
    'container-legacy-numel',
    'container-html',
    'structure-meta-none',
    'structure-weights-list',
    'structure-schema-future',
    'structure-packed-none',
    'structure-float-stretched',
    'structure-float-sparse',
    'structure-keys-int',
    'structure-recipe-cycle',
    'structure-recipe-shared',
    'structure-meta-deep',
    'structure-million-float',
    'structure-schema-1-*',
    'number-scale-nan-weight',
    'number-scale-zero-input',
    'number-scale-negative-weight',
    'number-zero-point-far',
    'number-grid-far-weight',
    'number-grid-wide-input',
    'number-packed-short',
    'number-shape-huge',
    'number-quant-min-far',
    'number-bits-thirty-two',
    'recipe-weight-observer',
    'recipe-activation-type',
    'recipe-softmax-override',
    'recipe-quantizer-import',
    'recipe-observer-identity',
    'recipe-argument-bins-negative',
    'recipe-backtracking-keep',
    'recipe-backtracking-override',
    'recipe-overrides-many',
    'misfit-state-empty',
    'misfit-state-none',
    'misfit-other-names',
    'misfit-lacks-one',
    'misfit-shape',
    'misfit-stretched',
    'misfit-keys-control',
    'misfit-million',
    'misfit-half-precision',
    'qat-observer',
    'qat-scale-nan',
    'qat-backtracking',
    'qat-entry-list',
)
MODULES = (pickles, containers, structures, grids, recipes, training, misfits)


def all_cases() -> list[Case]:
    """List every crafted file, by kind.

    Raises:
        ValueError: If two have the same name.
    """
    found = [case for module in MODULES for case in module.cases()]
    names = [case.name for case in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f'crafted files share a name: {twice}')
    return found


def select(patterns: Sequence[str] | None) -> list[Case]:
    """Return the selected cases.

    Args:
        patterns: Shell patterns of names or kinds; None selects all.
    """
    return [
        case
        for case in all_cases()
        if not patterns
        or any(
            fnmatchcase(case.name, pattern) or case.kind == pattern
            for pattern in patterns
        )
    ]


def is_wide(case: Case) -> bool:
    """Return whether every tool gets the file."""
    return case.tools is not None or any(
        fnmatchcase(case.name, pattern) for pattern in WIDE
    )
