"""Save the state of each finished unit, so that a killed run can resume."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.core.distributed import gathered, num_ranks, own_rank
from taskptq.core.switches import quantizers
from taskptq.prepare.blocks import Unit
from taskptq.reconstruction.config import ReconstructionConfig
from taskptq.reconstruction.rounding.learned import UnitResult
from taskptq.reconstruction.state_file import (
    StateError,
    check_state,
    content_digest,
    max_bytes,
    read_state,
    write_state,
)
from taskptq.reconstruction.state_folder import remove_partials

logger = logging.getLogger('taskptq')


class UnitStates:
    """Per-unit state files of one reconstruction.

    Each holds a digest of everything the result depends on (settings, loss,
    float weights, calibrated ranges, ranks) and one of its own content. A
    file of another run, or a damaged or altered one, is ignored with a
    warning. A state is checked completely before the model changes. Unless
    ``shared``, the folder must be
    :func:`~taskptq.reconstruction.state_folder.locked` meanwhile.

    Args:
        folder: Folder of the files; None turns saving off.
        model: Swapped and calibrated model, before reconstruction.
        config: Settings.
        loss: Reconstruction loss.
        num_batches: Calibration batches of this rank.
        shared: Several reconstructions use the folder; each digest then has
            a subfolder.
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
        self.free_ranges = config.moves_weight_ranges
        if folder is not None:
            run = [num_batches, num_ranks(), _description(loss)]
            self.digest = _digest(model, config, run)
            if shared:
                self.folder = folder / self.digest[:16]
            elif own_rank() == 0:
                remove_partials(folder)

    def load(self, index: int, unit: Unit) -> UnitResult | None:
        """Restore a finished unit's state; None if any rank lacks it."""
        if self.folder is None:
            return None
        state = self._read(self._path(index), unit)
        # A kill may hit between two ranks' files, or one may be damaged;
        # ranks must train in step and continue from the same bits.
        if not _is_same_everywhere(state) or state is None:
            return None
        layers = dict(unit.layers())
        # First, as codes become values by the ranges.
        for name, quantizer in quantizers(unit.module):
            quantizer.load_state_dict(state['quantizers'][name])
        for name, codes in state['codes'].items():
            layer, _, parameter = name.rpartition(':')
            weight = getattr(layers[layer], parameter)
            layers[layer].set_codes(parameter, codes.to(weight.device))
        for name, bias in state['biases'].items():
            layer, _, parameter = name.rpartition(':')
            layers[layer].set_bias(parameter, bias)
        return UnitResult.from_dict(state['result'])

    def _read(self, path: Path, unit: Unit) -> dict[str, Any] | None:
        """Read and check a state; None if the file cannot be used."""
        if not path.exists():
            return None
        try:
            state = read_state(path, limit=max_bytes(unit))
            if state['digest'] != self.digest:
                raise StateError('it belongs to another recipe or checkpoint')
            check_state(state, unit, free_ranges=self.free_ranges)
        except StateError as error:
            logger.warning(
                'ignoring %s and training its unit again: %s',
                path,
                error,
            )
            return None
        return state

    def save(self, index: int, unit: Unit, result: UnitResult) -> None:
        """Write a finished unit atomically.

        Raises:
            DiskFullError: If the disk is full.
        """
        if self.folder is None:
            return
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
            'biases': {
                f'{name}:{parameter}': bias.cpu()
                for name, module in unit.layers()
                for parameter, bias in module.corrected_biases.items()
            },
            'quantizers': {
                name: {
                    key: value.detach().cpu()
                    for key, value in quantizer.state_dict().items()
                }
                for name, quantizer in quantizers(unit.module)
            },
        }
        write_state(self._path(index), state)

    def _path(self, index: int) -> Path:
        assert self.folder is not None
        return self.folder / f'unit_{index:03d}_rank{own_rank()}.pth'


def _is_same_everywhere(state: dict[str, Any] | None) -> bool:
    """Whether all ranks have a state, with the same codes and ranges."""
    own = None
    if state is not None:
        own = content_digest(
            {key: state[key] for key in ('codes', 'biases', 'quantizers')}
        )
    found = gathered(own)
    return None not in found and len(set(found)) == 1


def _description(loss: Any) -> str:
    """Return the name and plain settings of a loss."""
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
    """Return a digest of settings, weights, ranges and run parameters."""
    settings = config.to_dict()
    # Memory and disk budgets don't affect the result, nor does keep_better
    # when it is off.
    for name in ('cache_bytes', 'cache_dir', 'cache_disk_bytes'):
        settings.pop(name, None)
    for name in ('keep_better', 'channels_last'):
        if not settings[name]:
            settings.pop(name)
    plain = json.dumps([settings, run], sort_keys=True)
    digest = hashlib.sha256(plain.encode())
    for name, quantizer in quantizers(model):
        digest.update(f'{name} {quantizer.spec}'.encode())
        if quantizer.mask is not None:
            kept = quantizer.mask.cpu().contiguous().numpy()
            digest.update(kept.tobytes())
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            continue
        digest.update(f'{name} {tuple(value.shape)} {value.dtype}'.encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
