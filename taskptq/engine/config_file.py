"""Reading of config files."""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config

from taskptq.engine.packaged_configs import is_packaged, locate

__all__ = ['read_config']


def read_config(path: str | Path) -> Config:
    """Read a config or a file of settings.

    Args:
        path: The file; or, as in ``_base_``, ``mmdet::`` and the path of one
            of that package's own configs.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    if is_packaged(path):
        return Config.fromfile(locate(str(path)))
    if not Path(path).is_file():
        raise FileNotFoundError(f'there is no config file {path}')
    return Config.fromfile(str(path))
