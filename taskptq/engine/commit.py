"""The commit that taskptq itself runs from, where it is a checkout."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

import taskptq

__all__ = ['source_commit']

# Seconds; a slow disk must not hold up a run.
PATIENCE = 5


@functools.cache
def source_commit() -> str | None:
    """Return the commit of the checkout that taskptq is imported from.

    None for an installed wheel, also inside of another repository, and
    without git. ``-dirty`` says that files of the package were changed.
    """
    package = Path(taskptq.__file__).resolve().parent
    top = _git(package, 'rev-parse', '--show-toplevel')
    if not top or Path(top).resolve() != package.parent:
        return None
    head = _git(package, 'rev-parse', '--verify', '--quiet', 'HEAD')
    if not head:
        return None
    changed = _git(package, 'status', '--porcelain', '--', '.')
    return f'{head}-dirty' if changed else head


def _git(folder: Path, *words: str) -> str:
    """Return what git prints; '' if it fails."""
    try:
        done = subprocess.run(
            ['git', '-C', str(folder), *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ''
    return done.stdout.strip() if done.returncode == 0 else ''
