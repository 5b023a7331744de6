"""Reading of config files."""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config

__all__ = ['read_config']


def read_config(path: str | Path) -> Config:
    """Read a config or a fragment.

    Args:
        path: The file; or, as in ``_base_``, ``mmdet::`` and the path of one
            of that package's own configs.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    if '::' in str(path):
        # Not by mmengine.hub.get_config, which installs missing packages.
        try:
            return Config.fromstring(f'_base_ = [{str(path)!r}]', '.py')
        except (AssertionError, ImportError, OSError, ValueError) as error:
            raise FileNotFoundError(
                f'there is no config {path}: give an installed package and '
                'the path of one of its configs, as in '
                'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
            ) from error
    if not Path(path).is_file():
        raise FileNotFoundError(f'there is no config file {path}')
    return Config.fromfile(str(path))
