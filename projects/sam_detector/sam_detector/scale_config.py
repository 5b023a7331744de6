"""Which layers a measurement of cost quantizes."""

from __future__ import annotations

import difflib
import re
from typing import Any

from torch import nn

__all__ = ['of_blocks', 'without_detector']


def without_detector(qconfig: dict[str, Any]) -> dict[str, Any]:
    """Remove the patterns of the detector, which isn't built."""
    kept = [
        pattern
        for pattern in qconfig.get('keep_float', [])
        if not pattern.startswith('detector')
    ]
    return {**qconfig, 'keep_float': kept}


def of_blocks(
    qconfig: dict[str, Any], blocks: list[str], *, model: nn.Module
) -> dict[str, Any]:
    """Keep all layers float but those of some blocks.

    Args:
        qconfig: Settings of the whole model.
        blocks: Qualified names.
        model: The float model.

    Raises:
        ValueError: If the model has no such module.
    """
    modules = dict(model.named_modules())
    for name in blocks:
        if name not in modules:
            near = difflib.get_close_matches(name, modules, n=1, cutoff=0)
            raise ValueError(f'--block {name}: no such module, as {near[0]}')
    names = '|'.join(re.escape(name) for name in blocks)
    rest = rf're:(?!(?:{names})(?:\.|$)).+'
    return {**qconfig, 'keep_float': [*qconfig['keep_float'], rest]}
