"""The float teacher of a training: made, kept for a resume, found again.

A training checkpoint holds the student alone. The float weights lie beside
it, once for all checkpoints of a run.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.engine.checkpoint_file import read_checkpoint
from taskptq.engine.pipeline import prepare_in_place
from taskptq.engine.teacher import build_teacher_model
from taskptq.prepare import QConfig
from taskptq.qat.checks import is_dense

__all__ = [
    'TEACHER_FILE',
    'find_teacher',
    'make_teacher',
    'other_teacher',
    'save_teacher',
]

TEACHER_FILE = 'float_teacher.pth'


def make_teacher(model: nn.Module) -> nn.Module:
    """Return a frozen copy of a float model, which shows what it attends to.

    The copy has the quantized counterparts of its layers, since these give
    the co-attended features out, with quantizers that are never calibrated:
    it stays float.

    Args:
        model: Float model; not changed.
    """
    teacher = copy.deepcopy(model).eval()
    prepare_in_place(teacher, QConfig.from_dict({}))
    return teacher.requires_grad_(False).eval()


def other_teacher(
    settings: Mapping[str, Any], *, device: torch.device
) -> nn.Module:
    """Build another float model to learn from, prepared and frozen.

    Args:
        settings: See ``taskptq.engine.teacher.build_teacher_model``.
        device: Where to put it.
    """
    teacher = build_teacher_model(settings).to(device)
    return teacher.requires_grad_(False).eval()


def save_teacher(model: nn.Module, folder: str | Path) -> str:
    """Write a float model's weights into a run's folder.

    Args:
        model: Float model.
        folder: ``work_dir`` of the run.

    Returns:
        Digest by which a checkpoint names them.
    """
    state = {
        name: tensor.detach().cpu()
        for name, tensor in model.state_dict().items()
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({'state_dict': state, 'meta': {}}, folder / TEACHER_FILE)
    return weights_digest(state)


def find_teacher(
    model: nn.Module, folders: Iterable[str | Path], *, digest: str
) -> nn.Module:
    """Return a float model with the weights that a run began with.

    Args:
        model: Float model of the same config; not changed.
        folders: Where the file may lie, most likely first.
        digest: What the checkpoint says of them.

    Raises:
        ValueError: If no folder has the file, or it does not fit.
    """
    folders = [Path(folder) for folder in folders]
    for folder in folders:
        path = folder / TEACHER_FILE
        if not path.is_file():
            continue
        state = read_checkpoint(path).get('state_dict')
        if not isinstance(state, Mapping) or not all(
            map(is_dense, state.values())
        ):
            raise ValueError(
                f'{path} has no state_dict with weights: copy '
                'it again from the work_dir of that run'
            )
        if weights_digest(state) != digest:
            continue
        teacher = copy.deepcopy(model)
        try:
            teacher.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(
                f'{path} holds the weights of another model than '
                f'{type(model).__name__}: take the config that the training '
                'began with'
            ) from error
        return teacher
    raise ValueError(
        f'the float weights that this training began with are in none of '
        f'{[str(folder) for folder in folders]}: copy {TEACHER_FILE} from '
        'the work_dir of that run, or give distillation.teacher a config and '
        'a checkpoint'
    )


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Return the sha256 over names, types, shapes and bytes of tensors."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        header = f'{name} {tensor.dtype} {list(tensor.shape)}'
        digest.update(header.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
