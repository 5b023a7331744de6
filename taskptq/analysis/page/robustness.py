"""How a file holds under noise, as ``taskptq bench robustness`` measured."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

from taskptq.analysis.page.side_files import read_json
from taskptq.export.quantized_file import QuantizedFile

__all__ = ['ROBUSTNESS_FILE', 'robustness_beside']

ROBUSTNESS_FILE = 'robustness.json'
FLOAT = 'float'
TITLES = {
    'systems': 'decoders, resizers, colors, model variants',
    'corruptions': 'corrupted images',
}
NUMBERS = ('clean', 'mean', 'relative', 'worst', 'excess')


def robustness_beside(file: QuantizedFile) -> dict[str, Any] | None:
    """Return the scores of a file and of its float model; None without.

    They count if the file was measured as it is, by its SHA-256.

    Args:
        file: Quantized file; ``robustness.json`` lies in its folder.

    Returns:
        ``images``, and ``rows``: each with ``noise``, ``model``, ``clean``,
        ``mean``, ``relative``, ``worst``, ``worst_noise`` and ``excess`` in
        the unit of the metric; what is unknown is None.
    """
    content = read_json(file.path.parent / ROBUSTNESS_FILE)
    name = _name_of(content, file)
    summary = content.get('summary')
    if name is None or not isinstance(summary, Mapping):
        return None
    rows = []
    for family, title in TITLES.items():
        models = summary.get(family)
        if not isinstance(models, Mapping):
            continue
        for model in (FLOAT, name):
            found = models.get(model)
            if isinstance(found, Mapping):
                rows.append(_row(found, title=title, model=model))
    images = content.get('images')
    return {
        'images': images if isinstance(images, int) else None,
        'rows': rows,
    }


def _name_of(content: Mapping[str, Any], file: QuantizedFile) -> str | None:
    """Return what the results call a file, None if they lack it."""
    subjects = content.get('subjects')
    if not isinstance(subjects, list):
        return None
    digest = hashlib.sha256(file.path.read_bytes()).hexdigest()
    for subject in subjects:
        if isinstance(subject, Mapping) and subject.get('sha256') == digest:
            return str(subject.get('name'))
    return None


def _row(
    found: Mapping[str, Any], *, title: str, model: str
) -> dict[str, Any]:
    numbers = {}
    for key in NUMBERS:
        value = found.get(key)
        known = isinstance(value, int | float) and math.isfinite(value)
        numbers[key] = float(value) if known and value is not None else None
    return {
        'noise': title,
        'model': model,
        'worst_noise': str(found.get('worst_noise') or ''),
        **numbers,
    }
