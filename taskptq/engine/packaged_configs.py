"""Configs inside installed packages: ``mmdet::retinanet/....py``.

mm packages ship their configs in a folder ``.mim``. mmengine's own look-up
knows a fixed list of packages by the names of their distributions: it finds
neither ours nor those of mmseg's maintained fork.
"""

from __future__ import annotations

import difflib
import importlib.util
from pathlib import Path, PurePosixPath

from mmengine.config.utils import MODULE2PACKAGE

__all__ = [
    'SEPARATOR',
    'base_expression',
    'config_folder',
    'config_names',
    'is_packaged',
    'locate',
]

SEPARATOR = '::'
FOLDER = '.mim/configs'
OWN = 'taskptq'
# Folder in a checkout installed in place; wheels have FOLDER.
CHECKOUT = '../configs'
EXAMPLE = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
NUM_NEAR = 3


def is_packaged(name: str | Path) -> bool:
    """Return whether a config's name refers to a package's config."""
    return SEPARATOR in str(name)


def locate(name: str) -> Path:
    """Return the file of a package's config.

    Args:
        name: Import name of the package, ``::`` and the path below its
            folder of configs.

    Raises:
        FileNotFoundError: If the package is not installed, has no configs,
            or lacks this one; names the nearest.
    """
    package, _, path = name.partition(SEPARATOR)
    folder = config_folder(package, name=name)
    found = folder / path
    if path and '..' not in PurePosixPath(path).parts and found.is_file():
        return found
    near = nearest(path, config_names(folder))
    raise FileNotFoundError(
        f'there is no config {name}; the nearest of {package} are '
        + ', '.join(f'{package}{SEPARATOR}{one}' for one in near)
    )


def config_folder(package: str, *, name: str = '') -> Path:
    """Return the folder of a package's configs without importing the package.

    Args:
        package: Import name.
        name: Requested config, for the error.

    Raises:
        FileNotFoundError: If the package has no configs.
    """
    spec = (
        importlib.util.find_spec(package) if package.isidentifier() else None
    )
    for place in (spec and spec.submodule_search_locations) or ():
        for relative in (FOLDER, *([CHECKOUT] if package == OWN else [])):
            if (Path(place) / relative).is_dir():
                return Path(place) / relative
    what = 'has no configs' if spec else 'is not installed'
    asked = f'there is no config {name}: ' if name else ''
    raise FileNotFoundError(
        f'{asked}the package {package!r} {what}; give an installed one and '
        f'the path of one of its configs, as in {EXAMPLE}'
    )


def config_names(folder: Path) -> list[str]:
    """Return the paths of all configs below a folder, sorted."""
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob('*.py')
    )


def nearest(path: str, names: list[str]) -> list[str]:
    """Return the names most similar to a path: by file name, then overall."""
    last = {name.rpartition('/')[2]: name for name in names}
    near = difflib.get_close_matches(
        path.rpartition('/')[2], last, n=NUM_NEAR, cutoff=0.6
    )
    return [last[one] for one in near] or difflib.get_close_matches(
        path, names, n=NUM_NEAR, cutoff=0
    )


def base_expression(name: str) -> str:
    """Return source by which any host's config inherits a package's config.

    Args:
        name: See :func:`locate`.

    >>> base_expression('mmdet::retinanet/r.py')
    "'mmdet::retinanet/r.py'"
    >>> base_expression('mmseg::fcn/f.py')
    "__import__('mmseg').__path__[0] + '/.mim/configs/fcn/f.py'"
    """
    package, _, path = name.partition(SEPARATOR)
    if MODULE2PACKAGE.get(package) == package:
        # mmengine finds it in both the original and the fork.
        return repr(name)
    folder = FOLDER
    if package == OWN and config_folder(OWN).match(CHECKOUT):
        folder = CHECKOUT
    return f'__import__({package!r}).__path__[0] + {f"/{folder}/{path}"!r}'
