"""Short names of registered parts: ``mse`` stands for ``MSEObserver``.

They are derived from the registered names, so users' own parts have them, too.
Configs may use them; files record the registered name.
"""

from __future__ import annotations

import difflib
import re

from mmengine.registry import Registry

__all__ = ['find_by_short_name', 'nearest_names', 'short_name', 'short_names']

# Registry -> suffixes that short names omit.
SUFFIXES: dict[str, tuple[str, ...]] = {
    'observer': ('Observer',),
    'quantizer': ('Quantizer',),
    'reconstruction loss': ('ReconLoss', 'Loss'),
    'model rewrite': ('Rewrite',),
}
WORD_STARTS = re.compile(r'(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])')


def short_name(name: str, *, kind: str) -> str:
    """Return the short name of a registered one.

    Args:
        name: Registered name, e.g. ``MSEObserver``.
        kind: Name of its registry.

    >>> short_name('PowerOfTwoQuantizer', kind='quantizer')
    'power_of_two'
    >>> short_name('MinMaxObserver', kind='observer')
    'minmax'
    """
    stem = name.rpartition('.')[2]
    for suffix in SUFFIXES.get(kind, ()):
        if stem.endswith(suffix) and stem != suffix:
            stem = stem.removesuffix(suffix)
            break
    return WORD_STARTS.sub('_', stem.replace('MinMax', 'Minmax')).lower()


def short_names(registry: Registry) -> dict[str, str]:
    """Return short name -> registered name, sorted.

    Ambiguous short names are omitted.

    Args:
        registry: Its own locations are imported first.
    """
    registry.import_from_location()
    known = {
        name: short_name(name, kind=registry.name)
        for name in sorted(registry.module_dict)
    }
    shorts = list(known.values())
    return {
        short: name for name, short in known.items() if shorts.count(short) < 2
    }


def find_by_short_name(registry: Registry, name: str) -> type | None:
    """Find the class behind a short name, or None.

    Args:
        registry: Registry of the class.
        name: Short name; ``-`` and ``_`` make no difference.

    Raises:
        ValueError: If several classes have it.
    """
    asked = _bare(name)
    registry.import_from_location()
    known: dict[str, type] = registry.module_dict
    found = [
        full
        for full in known
        if _bare(short_name(full, kind=registry.name)) == asked
    ]
    if len({known[full] for full in found}) > 1:
        raise ValueError(
            f'{name!r} may be {" or ".join(sorted(found))}: write the '
            f'{registry.name} by its full name'
        )
    return known[found[0]] if found else None


def nearest_names(registry: Registry, name: str) -> list[str]:
    """Return the three names most similar to a name, best first.

    Args:
        registry: Registry with the names.
        name: Short or full name that it does not have.
    """
    known = list(short_names(registry))
    if name != name.lower():
        known = list(registry.module_dict)
    return difflib.get_close_matches(name[:100], known, n=3, cutoff=0)


def _bare(name: str) -> str:
    """Return a name without word separators."""
    return re.sub('[-_]', '', name)
