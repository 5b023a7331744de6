"""Build what a config names: its model, and the source of its images."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from taskptq.core.setting_error import refuse
from taskptq.engine.calibration_data import EvaluationSource
from taskptq.engine.config_file import read_config

__all__ = ['build_model', 'evaluation_source', 'load_config']


def load_config(config: Config | str | Path) -> Config:
    """Read a config and make its default scope the current one.

    Raises:
        SettingError: If it is neither a config nor a path.
    """
    if not isinstance(config, (Config, str, Path)):
        raise refuse(
            'config', type(config).__name__, 'give a Config or its path'
        )
    if not isinstance(config, Config):
        config = read_config(config)
    init_default_scope(config.get('default_scope', 'mmengine'))
    return config


def check_device(device: str | torch.device) -> None:
    """Refuse a device that torch does not have here.

    Raises:
        SettingError: Naming it.
    """
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise refuse('device', str(device), 'give cpu or cuda') from error
    if kind == 'cuda' and not torch.cuda.is_available():
        raise refuse(
            'device', str(device), 'torch finds no GPU here, give cpu'
        )


def build_model(
    config: Config | str | Path, *, device: str | torch.device = 'cpu'
) -> nn.Module:
    """Build a config's model, in eval mode, with random weights.

    Args:
        config: Config or its path.
        device: Where to put the model.

    Raises:
        SettingError: If there is no such device.
    """
    check_device(device)
    config = load_config(config)
    # Registries of mm packages take keys out of what they build from.
    model_config = copy.deepcopy(config.model)
    # What a Runner does with the config's own preprocessor.
    preprocessor = config.get('preprocess_cfg')
    if preprocessor is not None:
        model_config.setdefault('data_preprocessor', preprocessor)
    model = revert_sync_batchnorm(MODELS.build(model_config))
    model.cfg = config
    model = model.to(device)
    # Distillation models of mmdet return nothing from it.
    model.eval()
    return model


def evaluation_source(config: Config) -> EvaluationSource:
    """Take the test set of a config, or else its validation set.

    Raises:
        ValueError: If the config has neither.
    """
    for name in ('test_dataloader', 'val_dataloader'):
        loader = config.get(name)
        if loader is not None:
            return EvaluationSource.from_config(loader)
    raise ValueError(
        'the config has neither test_dataloader nor '
        'val_dataloader: calibration needs their pipeline'
    )
