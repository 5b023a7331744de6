"""Build the Runner that measures a table's float model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from taskptq.apis import read_config
from taskptq.bench.table import Table
from taskptq.engine.checkpoint_file import local_file
from taskptq.engine.ptq_hook import remove_ema_hooks


def checkpoint_file(table: Table) -> Path:
    """Return the float checkpoint of a table.

    Raises:
        FileNotFoundError: If there is none.
    """
    try:
        return local_file(table.checkpoint)
    except FileNotFoundError as error:
        if table.prepare is None:
            raise
        raise FileNotFoundError(
            f'{error}: `{table.prepare}` makes it'
        ) from error


def measured_config(table: Table, work_dir: Path) -> Config:
    """Read the config of a float model, with the table's test sets.

    Args:
        table: Table with config, test sets (``grounds``) and split.
        work_dir: Folder of the log.

    Returns:
        The config; its test loop is the one to run.
    """
    cfg = read_config(table.config)
    if table.grounds is not None:
        for key, value in read_config(table.grounds).items():
            cfg[key] = placed(value, work_dir)
    cfg.work_dir = str(work_dir)
    cfg.load_from = None
    cfg.resume = False
    if table.split == 'val':
        cfg.test_dataloader = cfg.val_dataloader
        cfg.test_evaluator = cfg.val_evaluator
    return cfg


def placed(value: Any, work_dir: Path) -> Any:
    """Copy a setting, with a folder's name for ``{work_dir}``.

    >>> placed({'out': ['{work_dir}/lanes.json', 3]}, Path('a'))
    {'out': ['a/lanes.json', 3]}
    """
    if isinstance(value, str):
        return value.replace('{work_dir}', work_dir.as_posix())
    if isinstance(value, Mapping):
        return {key: placed(item, work_dir) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(placed(item, work_dir) for item in value)
    return value


def build_runner(cfg: Config) -> Runner:
    """Build the Runner of a float config, for its test loop.

    Args:
        cfg: See :func:`measured_config`.
    """
    runner = Runner.from_cfg(cfg)
    # Only the loop runs, so the hooks' set-up must be called here.
    remove_ema_hooks(runner)
    runner.call_hook('before_run')
    return runner
