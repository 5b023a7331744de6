"""README markers for trained models and their losses.

- ``training`` and ``training-targets``: see ``training_table.py``,
- ``losses``: see ``loss_ratio.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from taskptq.bench.loss_ratio import render_pair
from taskptq.bench.training_table import (
    ABSENT,
    find_training_tables,
    render_training,
    render_training_targets,
)

MARKED = re.compile(
    r'(<!-- (training|training-targets|losses):(\S+)((?: [\w.+-]+)*) '
    r'-->\n).*?(<!-- /\2 -->)',
    re.DOTALL,
)
TRAINING = {
    'training': render_training,
    'training-targets': render_training_targets,
}


def update_training_text(
    text: str, root: Path, families: Sequence[str], entries: Mapping[str, Any]
) -> str:
    """Return a README's text with all of these markers updated.

    Args:
        text: The README.
        root: The repository's top level.
        families: Patterns of the folders of tables.
        entries: All tables of quantized models.

    Raises:
        ValueError: If a marker names no table.
    """
    if MARKED.search(text) is None:
        return text
    tables = find_training_tables(root, families)

    def shown(match: re.Match[str]) -> str:
        kind, name, words = match[2], match[3], match[4].split()
        if kind == 'losses':
            found = render_pair(entries, name, words)
        elif name not in tables:
            raise ValueError(f'there is no table {name}.train.yml')
        else:
            found = TRAINING[kind](tables[name])
        return match[1] + (found or ABSENT) + match[5]

    return MARKED.sub(shown, text)
