"""The families of configs that the installed hosts ship."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path

HOSTS = ('mmdet', 'mmseg')
# Folders that hold parts of configs.
NO_FAMILIES = frozenset({'_base_', 'common'})
# Words in a config's name -> how large its backbone is.
SIZES = {
    'nano': 1,
    'tiny': 5,
    'mscan-t': 5,
    'mit-b0': 5,
    '-t-': 10,
    '_t_': 10,
    'small': 20,
    '_s_': 20,
    'b0': 10,
    'light': 15,
    'large': 150,
    '-l-': 150,
    'base': 60,
}
# Layers of a ResNet and its kind, channels of an HRNet.
_DEPTH = re.compile(
    r'(?:^|[-_])(?:r|x|s|hr|hrnetv2p-w|vgg)(\d{2,3})(?=[-_]|$)'
)
# What a name without any size counts as: the usual ResNet-50.
USUAL = 50


def families(host: str) -> dict[str, list[Path]]:
    """Return family -> its configs, sorted, of an installed host.

    Args:
        host: 'mmdet' or 'mmseg'.

    Raises:
        ValueError: If the host is not installed.
    """
    spec = importlib.util.find_spec(host)
    if spec is None or spec.origin is None:
        raise ValueError(f'{host} is not installed, so it has no configs')
    root = Path(spec.origin).parent / '.mim' / 'configs'
    found = {
        folder.name: sorted(folder.glob('*.py'))
        for folder in sorted(root.iterdir())
        if folder.is_dir() and folder.name not in NO_FAMILIES
    }
    return {name: paths for name, paths in found.items() if paths}


def smallest(paths: Iterable[Path]) -> Path:
    """Return the config of the smallest backbone, by its name.

    Fast R-CNNs need boxes from a file, so that they come last.

    >>> smallest([Path('fcos_r101_fpn.py'), Path('fcos_r50_fpn.py')]).name
    'fcos_r50_fpn.py'

    Args:
        paths: Configs of one family.
    """
    return min(paths, key=_order)


def _order(path: Path) -> tuple[int, bool, str]:
    return size_of(path.stem), 'fast-rcnn' in path.stem, path.stem


def size_of(name: str) -> int:
    """Return how large a backbone is, as a depth of ResNet.

    >>> size_of('fcos_r101_fpn_1x_coco'), size_of('yolox_s_8xb8-300e_coco')
    (101, 20)

    Args:
        name: Name of a config.
    """
    found = [size for word, size in SIZES.items() if word in f'_{name}_']
    if found:
        return min(found)
    depths = [int(depth) for depth in _DEPTH.findall(name)]
    return min((d for d in depths if d < 400), default=USUAL)
