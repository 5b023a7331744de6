"""Another float detector as the teacher of a reconstruction."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from taskptq.calibration.calibrate import calibration_mode
from taskptq.core import float_only
from taskptq.core.rules import Flag
from taskptq.engine.checkpoint_file import (
    load_float_weights,
    local_file,
    read_checkpoint,
)
from taskptq.prepare import QConfig, prepare

__all__ = ['Teacher', 'build_teacher_model']

KEYS = frozenset({'config', 'checkpoint', 'trust_checkpoint'})


class Teacher:
    """Float model and its adapter; it runs but is never trained.

    Args:
        model: From :func:`build_teacher_model`.
        adapter: The model's adapter.
        name: Unique name of the teacher.
    """

    def __init__(self, model: nn.Module, adapter: Any, *, name: str) -> None:
        self.model = model.requires_grad_(False).eval()
        self.adapter = adapter
        self.name = name

    def run(
        self, batches: Sequence[Any], *, device: torch.device
    ) -> list[dict[str, Tensor]]:
        """Return the named outputs on each batch, then free the device.

        Args:
            batches: Collated batches of the student's dataloader; the
                teacher applies its own preprocessor.
            device: Device to run on; the outputs stay there.
        """
        self.model.to(device)
        with calibration_mode(self.model), float_only(self.model):
            found = [
                dict(self.adapter.forward_heads(self.model, batch))
                for batch in batches
            ]
        self.model.to('cpu')
        return found


def build_teacher_model(settings: Mapping[str, Any]) -> nn.Module:
    """Build a teacher with its weights.

    Its layers are replaced by their counterparts with all quantizers off,
    because those expose the features inside attentions.

    Args:
        settings: Paths ``config`` and ``checkpoint`` (or its URL), and
            optionally ``trust_checkpoint``, see ``read_checkpoint``.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If a key is missing or unknown, or the checkpoint does
            not fit.
    """
    unknown = sorted(set(settings) - KEYS)
    missing = sorted({'config', 'checkpoint'} - set(settings))
    if unknown or missing:
        raise ValueError(
            f'teacher={dict(settings)}: give config and checkpoint, and '
            'optionally trust_checkpoint'
        )
    if not Path(settings['config']).is_file():
        raise FileNotFoundError(
            f'there is no config file {settings["config"]}'
        )
    config = Config.fromfile(str(settings['config']))
    trusted = Flag().read(
        settings.get('trust_checkpoint', False),
        name='teacher.trust_checkpoint',
    )
    path = local_file(settings['checkpoint'])
    content = read_checkpoint(path, trust_checkpoint=trusted)
    scope = config.get('default_scope', 'mmengine')
    with DefaultScope.overwrite_default_scope(scope):
        # Copied, since some classes pop items from their config.
        model = revert_sync_batchnorm(
            MODELS.build(copy.deepcopy(config.model))
        ).eval()
    load_float_weights(model, content, path=path)
    prepare(model, QConfig.from_dict({'products': False}))
    return model
