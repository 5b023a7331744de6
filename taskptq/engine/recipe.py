"""A recipe: how a model is quantized, checked and in plain types."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from taskptq.analysis.mixed_precision.settings import MixedPrecisionConfig
from taskptq.core.settings import SettingError
from taskptq.engine.builder import (
    build_mixed_precision,
    build_qconfig,
    registered_part,
    to_plain,
)
from taskptq.engine.hook_settings import check_recipe
from taskptq.prepare import QConfig
from taskptq.reconstruction.config import ReconstructionConfig
from taskptq.registry import RECON_LOSSES, REWRITES

__all__ = ['Recipe']

PARTS = (
    'qconfig',
    'reconstruction',
    'loss',
    'rewrites',
    'mixed_precision',
)
# Local storage settings, not part of how a model is quantized.
LOCAL_SETTINGS = ('cache_dir', 'cache_disk_bytes')


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings that determine how a model is quantized.

    Args:
        qconfig: Quantizers of each layer.
        reconstruction: Settings of the reconstruction; None skips it.
        loss: Config of its ReconLoss; None is the mean squared error.
        rewrites: Configs of the ModelRewrites that run first.
        mixed_precision: How bits of single tensors are chosen; None keeps
            those of ``qconfig``.
        calibration: Record of the calibration images for the file.
        seed: Seed of all randomness.
    """

    qconfig: QConfig
    reconstruction: Mapping[str, Any] | None = None
    loss: Mapping[str, Any] | None = None
    rewrites: Sequence[Mapping[str, Any]] = ()
    mixed_precision: MixedPrecisionConfig | None = None
    calibration: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    @classmethod
    def from_config(
        cls,
        qconfig: Mapping[str, Any] | QConfig,
        *,
        reconstruction: Mapping[str, Any] | None = None,
        loss: Mapping[str, Any] | None = None,
        rewrites: Sequence[Mapping[str, Any]] | None = None,
        mixed_precision: Mapping[str, Any] | None = None,
        calibration: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> Recipe:
        """Read a config's dicts and check them.

        Args:
            qconfig: See ``QConfig.from_dict``.
            reconstruction: See ``ReconstructionConfig``; None skips it.
            loss: Config of a ReconLoss; None is ``reconstruction['loss']``.
            rewrites: Configs of ModelRewrites.
            mixed_precision: See ``MixedPrecisionConfig``; None leaves it
                out.
            calibration: Record of the images, plain types.
            seed: Seed if ``reconstruction`` has none.

        Raises:
            ValueError: If a key or value is invalid.
        """
        check_recipe(
            reconstruction=reconstruction,
            loss=loss,
            rewrites=rewrites,
            seed=seed,
        )
        settings = None
        if reconstruction is not None:
            settings = {'seed': seed, **to_plain(reconstruction)}
            own_loss = settings.pop('loss', None)
            loss = own_loss if loss is None else loss
            ReconstructionConfig.from_dict(settings)
        elif loss is not None:
            raise ValueError(
                'a loss has no effect without reconstruction: give '
                'reconstruction=dict(...) or remove loss'
            )
        built = build_qconfig(qconfig)
        if built.size is not None and mixed_precision is not None:
            raise SettingError(
                'qconfig.size',
                ' does not go with mixed_precision, since both choose how '
                'many bits a weight has: take a recipe such as w8a8_size10x',
            )
        if built.sparsity is not None and mixed_precision is not None:
            raise SettingError(
                'qconfig.sparsity',
                ' does not go with mixed_precision, which chooses bits for '
                'dense weights: remove one of them',
            )
        return cls(
            qconfig=built,
            reconstruction=settings,
            loss=registered_part(RECON_LOSSES, loss),
            rewrites=[
                registered_part(REWRITES, one) for one in rewrites or ()
            ],
            mixed_precision=(
                None
                if mixed_precision is None
                else build_mixed_precision(mixed_precision)
            ),
            calibration=dict(calibration or {}),
            seed=seed,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain types for the quantized file."""
        settings = to_plain(self.reconstruction)
        if settings is not None:
            for name in LOCAL_SETTINGS:
                settings.pop(name, None)
        plain = {
            'qconfig': to_plain(self.qconfig.to_dict()),
            'reconstruction': settings,
            'loss': to_plain(self.loss),
            'rewrites': to_plain(self.rewrites),
            'calibration': to_plain(self.calibration),
            'seed': self.seed,
        }
        # Left out by default, since older files do not have this key.
        if self.mixed_precision is not None:
            plain['mixed_precision'] = self.mixed_precision.to_dict()
        return plain

    def differences(self, recorded: Mapping[str, Any]) -> list[str]:
        """Return the parts in which a file's recipe differs from this one.

        A file of a mixed-precision recipe holds the overrides and float
        layers that were chosen, after those of the recipe, and may have been
        reconstructed where the recipe itself does not ask for it.

        Args:
            recorded: Recipe of a quantized file.
        """
        asked = self.to_dict()
        found = dict(recorded)
        if self.mixed_precision is not None and (
            found.get('mixed_precision') == asked['mixed_precision']
        ):
            qconfig = dict(found.get('qconfig') or {})
            for key in ('overrides', 'keep_float'):
                own = len(asked['qconfig'][key])
                qconfig[key] = list(qconfig.get(key) or ())[:own]
            found['qconfig'] = qconfig
            if asked['reconstruction'] is None:
                found['reconstruction'] = None
        return [key for key in PARTS if asked.get(key) != found.get(key)]

    def digest(self) -> str:
        """Return a short name that differs between recipes."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
