"""State of each finished unit, so that a killed run goes on after it."""
from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from taskptq.calibration.config import ReconstructionConfig
from taskptq.calibration.train_unit import UnitResult
from taskptq.core.state import quantizers
from taskptq.modules.base import quant_modules
from taskptq.prepare.blocks import Unit

logger = logging.getLogger('taskptq')


class UnitStates:
    """Per-unit files of one reconstruction.

    Each holds the digest of everything the result depends on (settings,
    float weights, calibrated ranges): a file of another run is ignored, with
    a log line.

    Args:
        folder: Where the files lie; None turns saving off.
        model: Swapped and calibrated model, before reconstruction.
        config: Settings.
    """

    def __init__(
        self,
        folder: Path | None,
        model: nn.Module,
        config: ReconstructionConfig,
    ) -> None:
        self.folder = folder
        self.digest = '' if folder is None else _digest(model, config)

    def load(self, index: int, unit: Unit) -> UnitResult | None:
        """Put a finished unit's state in; None if there is none."""
        if self.folder is None or not self._path(index).exists():
            return None
        state = torch.load(self._path(index), weights_only=True)
        if state['digest'] != self.digest:
            logger.warning(
                '%s belongs to another recipe or checkpoint: starting anew',
                self._path(index),
            )
            return None
        layers = dict(unit.layers())
        for name, codes in state['codes'].items():
            layer, _, parameter = name.rpartition(':')
            layers[layer].set_codes(parameter, codes)
        for name, quantizer in quantizers(unit.module):
            if name in state['quantizers']:
                quantizer.load_state_dict(state['quantizers'][name])
        return UnitResult(**state['result'])

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
        partial = path.with_suffix('.partial')
        torch.save(state, partial)
        partial.replace(path)

    def _path(self, index: int) -> Path:
        assert self.folder is not None
        rank = 0
        if dist.is_available() and dist.is_initialized():
            rank = dist.get_rank()
        return self.folder / f'unit_{index:03d}_rank{rank}.pth'


def _digest(model: nn.Module, config: ReconstructionConfig) -> str:
    """Digest of settings, weights and ranges."""
    settings = config.to_dict()
    # How much memory it may take changes nothing in the result.
    settings.pop('cache_bytes')
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, module in quant_modules(model):
        for parameter, _ in module.active_slots():
            digest.update(f'{name}.{parameter}'.encode())
            weight = getattr(module, parameter).detach().cpu().contiguous()
            digest.update(weight.numpy().tobytes())
    for name, quantizer in quantizers(model):
        digest.update(f'{name} {quantizer.spec}'.encode())
        for value in quantizer.state_dict().values():
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
