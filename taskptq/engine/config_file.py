"""Reading of config files."""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config

from taskptq.engine.packaged_configs import is_packaged, locate

__all__ = ['SUFFIXES', 'read_config']

# What mmengine reads.
SUFFIXES = ('.py', '.json', '.yaml', '.yml')


def read_config(path: str | Path) -> Config:
    """Read a config or a file of settings.

    Args:
        path: The file; or, as in ``_base_``, ``mmdet::`` and the path of one
            of that package's own configs.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is another kind of file, or no valid Python.
    """
    if is_packaged(path):
        return Config.fromfile(locate(str(path)))
    if not Path(path).is_file():
        raise FileNotFoundError(f'there is no config file {path}')
    if Path(path).suffix not in SUFFIXES:
        raise ValueError(
            f'{path} is no config: give a file that ends in '
            f'{", ".join(SUFFIXES)}'
        )
    try:
        return Config.fromfile(str(path))
    except SyntaxError as error:
        raise ValueError(
            f'{path}, or a config that it inherits, is not valid Python: '
            f'{error.msg} (line {error.lineno})'
        ) from error
