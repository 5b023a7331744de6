"""State of each finished unit, so that a killed run goes on after it."""
from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from taskptq.calibration.config import ReconstructionConfig
from taskptq.calibration.ranks import gathered
from taskptq.calibration.train_unit import UnitResult
from taskptq.core.state import quantizers
from taskptq.prepare.blocks import Unit

logger = logging.getLogger('taskptq')


class UnitStates:
    """Per-unit files of one reconstruction.

    Each holds the digest of everything the result depends on (settings,
    loss, float weights, calibrated ranges, ranks): a file of another run is
    ignored, with a log line.

    Args:
        folder: Where the files lie; None turns saving off.
        model: Swapped and calibrated model, before reconstruction.
        config: Settings.
        loss: Reconstruction loss.
        num_batches: Calibration batches of this rank.
        shared: The folder is that of several reconstructions: these files
            lie in one of its own for each digest.
    """

    def __init__(
        self,
        folder: Path | None,
        model: nn.Module,
        config: ReconstructionConfig,
        *,
        loss: Any = None,
        num_batches: int = 0,
        shared: bool = False,
    ) -> None:
        self.folder = folder
        self.digest = ''
        if folder is not None:
            run = [num_batches, _world_size(), _description(loss)]
            self.digest = _digest(model, config, run)
            if shared:
                self.folder = folder / self.digest[:16]
        # Who shares a folder may write the same file at the same time.
        self.partial_suffix = (
            f'.{os.getpid()}.partial' if shared else '.partial'
        )

    def load(self, index: int, unit: Unit) -> UnitResult | None:
        """Put a finished unit's state in; None if a rank has none."""
        if self.folder is None:
            return None
        state = self._read(self._path(index))
        # A kill may fall between two ranks' files; they must train in step.
        if not _everywhere(state is not None) or state is None:
            return None
        layers = dict(unit.layers())
        for name, codes in state['codes'].items():
            layer, _, parameter = name.rpartition(':')
            layers[layer].set_codes(parameter, codes)
        for name, quantizer in quantizers(unit.module):
            if name in state['quantizers']:
                quantizer.load_state_dict(state['quantizers'][name])
        return UnitResult(**state['result'])

    def _read(self, path: Path) -> dict[str, Any] | None:
        if not path.exists():
            return None
        state: dict[str, Any] = torch.load(path, weights_only=True)
        if state['digest'] == self.digest:
            return state
        logger.warning(
            '%s belongs to another recipe or checkpoint: starting anew', path
        )
        return None

    def save(self, index: int, unit: Unit, result: UnitResult) -> None:
        """Write a finished unit; the file appears whole or not at all."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        codes = {
            f'{name}:{parameter}': module.codes(parameter).cpu()
            for name, module in unit.layers()
            for parameter, _ in module.active_slots()
            if parameter in module.rounded_parameters
        }
        state: dict[str, Any] = {
            'digest': self.digest,
            'result': result.to_dict(),
            'codes': codes,
            'quantizers': {
                name: dict(quantizer.state_dict())
                for name, quantizer in quantizers(unit.module)
            },
        }
        path = self._path(index)
        partial = path.with_suffix(self.partial_suffix)
        torch.save(state, partial)
        partial.replace(path)

    def _path(self, index: int) -> Path:
        assert self.folder is not None
        rank = 0
        if dist.is_available() and dist.is_initialized():
            rank = dist.get_rank()
        return self.folder / f'unit_{index:03d}_rank{rank}.pth'


def _world_size() -> int:
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return 1


def _everywhere(found: bool) -> bool:
    """Whether a thing is so on all ranks."""
    return all(gathered(found))


def _description(loss: Any) -> str:
    """Name and plain settings of a loss."""
    name = getattr(loss, '__qualname__', type(loss).__qualname__)
    settings = {
        key: value
        for key, value in sorted(getattr(loss, '__dict__', {}).items())
        if isinstance(value, bool | int | float | str | None)
    }
    return f'{name} {settings}'


def _digest(
    model: nn.Module, config: ReconstructionConfig, run: list[Any]
) -> str:
    """Digest of settings, weights, ranges, and what else is of this run."""
    settings = config.to_dict()
    # How much memory it may take changes nothing in the result, and neither
    # does a check that is left out.
    settings.pop('cache_bytes')
    if not settings['keep_better']:
        settings.pop('keep_better')
    plain = json.dumps([settings, run], sort_keys=True)
    digest = hashlib.sha256(plain.encode())
    for name, quantizer in quantizers(model):
        digest.update(f'{name} {quantizer.spec}'.encode())
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            continue
        digest.update(f'{name} {tuple(value.shape)} {value.dtype}'.encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
