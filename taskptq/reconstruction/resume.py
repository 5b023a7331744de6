"""State of each finished unit, so that a killed run goes on after it."""

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
    """Per-unit files of one reconstruction.

    Each holds the digest of everything the result depends on (settings,
    loss, float weights, calibrated ranges, ranks), and one of its own
    content: a file of another run, or one that is damaged or altered, is
    ignored with a warning. Nothing of it reaches the model before all of it
    is checked. Unless ``shared``, the folder is to be
    :func:`~taskptq.reconstruction.state_folder.locked` meanwhile.

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
            run = [num_batches, num_ranks(), _description(loss)]
            self.digest = _digest(model, config, run)
            if shared:
                self.folder = folder / self.digest[:16]
            elif own_rank() == 0:
                remove_partials(folder)

    def load(self, index: int, unit: Unit) -> UnitResult | None:
        """Put a finished unit's state in; None if a rank has none."""
        if self.folder is None:
            return None
        state = self._read(self._path(index), unit)
        # A kill may fall between two ranks' files, or one be damaged: they
        # must train in step, and go on from the same bits.
        if not _is_same_everywhere(state) or state is None:
            return None
        layers = dict(unit.layers())
        for name, codes in state['codes'].items():
            layer, _, parameter = name.rpartition(':')
            weight = getattr(layers[layer], parameter)
            layers[layer].set_codes(parameter, codes.to(weight.device))
        for name, quantizer in quantizers(unit.module):
            quantizer.load_state_dict(state['quantizers'][name])
        return UnitResult(**state['result'])

    def _read(self, path: Path, unit: Unit) -> dict[str, Any] | None:
        """Read and check a state; a file that cannot be used is none."""
        if not path.exists():
            return None
        try:
            state = read_state(path, limit=max_bytes(unit))
            if state['digest'] != self.digest:
                raise StateError('it belongs to another recipe or checkpoint')
            check_state(state, unit)
        except StateError as error:
            logger.warning(
                '%s is left unused, and its unit trained anew: %s',
                path,
                error,
            )
            return None
        return state

    def save(self, index: int, unit: Unit, result: UnitResult) -> None:
        """Write a finished unit; the file appears whole or not at all.

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
            {key: state[key] for key in ('codes', 'quantizers')}
        )
    found = gathered(own)
    return None not in found and len(set(found)) == 1


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
    # How much memory and disk it may take changes nothing in the result, and
    # neither does a check that is left out.
    for name in ('cache_bytes', 'cache_dir', 'cache_disk_bytes'):
        settings.pop(name, None)
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
