"""Build the float teacher of a training, save it, find it for a resume.

A training checkpoint holds only the student. The float weights are saved next
to it, once for all checkpoints of a run.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.core.atomic import write_atomically
from taskptq.engine.checkpoint_file import read_checkpoint
from taskptq.engine.pipeline import prepare_in_place
from taskptq.engine.teacher import build_teacher_model
from taskptq.prepare import QConfig
from taskptq.qat.checkpoint import is_dense
from taskptq.qat.distillation import DistillationConfig

__all__ = [
    'TEACHER_FILE',
    'RunTeacher',
    'find_teacher',
    'make_teacher',
    'other_teacher',
    'save_teacher',
]

TEACHER_FILE = 'float_teacher.pth'


class RunTeacher:
    """The teacher of one run, and the float weights that the run keeps.

    Args:
        config: Settings of the distillation; None trains without a teacher.

    Attributes:
        model: The teacher; None without distillation or before the start.
        digest: Digest of the kept float weights, for checkpoints; or None.
    """

    def __init__(self, config: DistillationConfig | None) -> None:
        self.config = config
        self.model: nn.Module | None = None
        self.digest: str | None = None

    def start(
        self, float_model: nn.Module, *, work_dir: str | Path, keep: bool
    ) -> None:
        """Make the teacher of a new training.

        Args:
            float_model: Model before preparation; not changed.
            work_dir: Folder of the run.
            keep: Keep the float weights even if no distillation needs them.
        """
        own = self.config is not None and not self.config.teacher
        if own or keep:
            self.digest = save_teacher(float_model, work_dir)
        if own:
            self.model = make_teacher(float_model)
        else:
            self._build_other(float_model)

    def recall(
        self,
        float_model: nn.Module,
        *,
        digest: str | None,
        work_dir: str | Path,
        source: Path | None,
    ) -> None:
        """Find the teacher of a training to continue.

        Args:
            float_model: Float model of the same config; not changed.
            digest: Digest from the checkpoint.
            work_dir: Folder of this run.
            source: Checkpoint to continue from, if it is a local file.

        Raises:
            ValueError: If its float weights were not kept or are missing.
        """
        self.digest = digest
        if self.config is None:
            return
        self._build_other(float_model)
        if self.model is not None:
            return
        if digest is None:
            raise ValueError(
                'the checkpoint is from a training without distillation, '
                'which kept no float weights: set distillation.teacher to '
                'the config and the float checkpoint'
            )
        folders = [Path(work_dir)]
        if source is not None:
            folders.append(source.parent)
        found = find_teacher(float_model, folders, digest=digest)
        # Checkpoints of this run will look for it here.
        save_teacher(found, work_dir)
        self.model = make_teacher(found)

    def _build_other(self, float_model: nn.Module) -> None:
        if self.config is not None and self.config.teacher:
            device = next(float_model.parameters()).device
            self.model = other_teacher(self.config.teacher, device=device)


def make_teacher(model: nn.Module) -> nn.Module:
    """Return a frozen copy of a float model that exposes attended features.

    Its layers are replaced by their quantized counterparts, which expose the
    co-attended features. Their quantizers are never calibrated, so the copy
    stays float.

    Args:
        model: Float model; not changed.
    """
    teacher = copy.deepcopy(model).eval()
    prepare_in_place(teacher, QConfig.from_dict({'products': False}))
    return teacher.requires_grad_(False).eval()


def other_teacher(
    settings: Mapping[str, Any], *, device: torch.device
) -> nn.Module:
    """Build another float model as the teacher, prepared and frozen.

    Args:
        settings: See ``taskptq.engine.teacher.build_teacher_model``.
        device: Device of the teacher.
    """
    teacher = build_teacher_model(settings).to(device)
    return teacher.requires_grad_(False).eval()


def save_teacher(model: nn.Module, folder: str | Path) -> str:
    """Save a float model's weights in a run's folder.

    Args:
        model: Float model.
        folder: ``work_dir`` of the run.

    Returns:
        Digest that identifies them in checkpoints.
    """
    state = {
        name: tensor.detach().cpu()
        for name, tensor in model.state_dict().items()
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # A resumed run reads this file, and writes it anew.
    write_atomically(
        folder / TEACHER_FILE,
        lambda file: torch.save({'state_dict': state, 'meta': {}}, file),
    )
    return weights_digest(state)


def find_teacher(
    model: nn.Module, folders: Iterable[str | Path], *, digest: str
) -> nn.Module:
    """Return a float model with the weights that a run started from.

    Args:
        model: Float model of the same config; not changed.
        folders: Folders to search, most likely first.
        digest: Digest of the weights, from the checkpoint.

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
                f'{type(model).__name__}: use the config that the training '
                'started with'
            ) from error
        return teacher
    raise ValueError(
        f'the float weights that this training started from are in none of '
        f'{[str(folder) for folder in folders]}: copy {TEACHER_FILE} from '
        'the work_dir of that run, or set distillation.teacher to a config '
        'and a checkpoint'
    )


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Return the sha256 over names, dtypes, shapes and bytes of tensors."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        header = f'{name} {tensor.dtype} {list(tensor.shape)}'
        digest.update(header.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
