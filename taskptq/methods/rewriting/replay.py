"""Repeat the structural changes of rewrites, without data.

Most rewrites only change values, which a quantized file holds. Some change
what a model consists of. They report that as ``structure``, the file keeps
it, and a restore repeats it on the float model before it is prepared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

from torch import nn

from taskptq.registry import REWRITES, registered

__all__ = ['replay', 'structures']


class StructuralRewrite(Protocol):
    """A rewrite that changes what a model consists of."""

    @classmethod
    def replay(cls, model: nn.Module, structure: Mapping[str, Any]) -> None:
        """Change a model's structure, in place.

        Args:
            model: Float model; its values are not read.
            structure: From the report of the rewrite; a file's is not
                trusted.

        Raises:
            ValueError: If the structure does not fit the model.
        """


def structures(reports: Sequence[Any]) -> list[dict[str, Any]]:
    """Return what rewrites changed in a model's structure, in their order.

    Args:
        reports: Plain reports of all rewrites.
    """
    return [
        {'rewrite': report['rewrite'], **report['structure']}
        for report in reports
        if isinstance(report, Mapping) and report.get('structure')
    ]


def replay(model: nn.Module, changes: Any) -> None:
    """Repeat the changes of a file's rewrites on a float model, in place.

    Args:
        model: Float model, perhaps an outline without values.
        changes: From :func:`structures`, read from a file; None is nothing.

    Raises:
        ValueError: If they are malformed, name no known rewrite, or do not
            fit the model.
    """
    if changes is None:
        return
    if not isinstance(changes, list | tuple):
        raise ValueError('structure.rewrites is not a list')
    for change in changes:
        if not isinstance(change, Mapping):
            raise ValueError('structure.rewrites holds something but dicts')
        name = change.get('rewrite')
        found = registered(REWRITES, name) if isinstance(name, str) else None
        if found is None or not hasattr(found, 'replay'):
            raise ValueError(
                f'structure.rewrites names {str(name)[:100]!r}, which is no '
                'rewrite that changes a structure'
            )
        rest = {key: one for key, one in change.items() if key != 'rewrite'}
        cast('StructuralRewrite', found).replay(model, rest)
