"""The settings of a quantization-aware training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from taskptq.core.rules import SEED, Choice, Flag, Text
from taskptq.core.settings import SettingError
from taskptq.engine.builder import build_qconfig, to_plain
from taskptq.engine.calibration_config import CalibrationConfig
from taskptq.engine.recipe import Recipe
from taskptq.engine.recipe_source import with_recipe
from taskptq.prepare import QConfig
from taskptq.qat.checkpoint import training_recipe
from taskptq.qat.checks import refuse_sparsity
from taskptq.qat.distillation import DistillationConfig
from taskptq.qat.optimizer import read_lr_mult
from taskptq.qat.stages import NAMED, Stages, named_stages

__all__ = ['TrainingSettings']


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Checked arguments of ``QATHook``, which documents them."""

    qconfig: QConfig | None
    calibration: CalibrationConfig
    distillation: DistillationConfig | None
    stages: Stages
    lr_mult: dict[str, float] | None
    seed: int
    out: str | None
    trust_checkpoint: bool

    @classmethod
    def read(
        cls,
        *,
        qconfig: Any,
        recipe: Any,
        calibration: Any,
        distillation: Any,
        stage: Any,
        stages: Any,
        lr_mult: Any,
        seed: Any,
        out: Any,
        trust_checkpoint: Any,
    ) -> TrainingSettings:
        """Read the arguments.

        Raises:
            ValueError: If a setting is invalid; names it.
        """
        number = Choice(choices=tuple(NAMED)).read(stage, name='stage')
        seed = SEED.read(seed, name='QATHook.seed')
        parts = with_recipe(
            recipe, owner='QATHook', qconfig=qconfig, distillation=distillation
        )
        chosen = parts['qconfig']
        if chosen is not None:
            chosen = build_qconfig(chosen)
            refuse_sparsity(chosen)
        return cls(
            qconfig=chosen,
            calibration=CalibrationConfig.from_dict(calibration, seed=seed),
            distillation=_distillation(parts['distillation']),
            stages=_stages(number, stages),
            lr_mult=read_lr_mult(lr_mult),
            seed=seed,
            out=Text(path=True, optional=True).read(out, name='QATHook.out'),
            trust_checkpoint=Flag().read(
                trust_checkpoint, name='QATHook.trust_checkpoint'
            ),
        )

    def recipe(self, *, at: int = 0) -> dict[str, Any]:
        """Return the recipe that files record; empty without quantizers.

        Args:
            at: Index of the stage that the training is in.
        """
        if self.qconfig is None:
            return {}
        return training_recipe(
            Recipe.from_config(
                self.qconfig,
                calibration=self.calibration.recipe(),
                seed=self.seed,
            ),
            stages=self.stages,
            distillation=self.distillation,
            lr_mult=self.lr_mult,
            at=at,
        )


def _distillation(
    given: Mapping[str, Any] | None,
) -> DistillationConfig | None:
    if given is None:
        return None
    return DistillationConfig.from_dict(to_plain(given))


def _stages(number: int, given: Any) -> Stages:
    if given is None:
        return named_stages(number)
    if number != 2:
        raise SettingError(
            'stage', f'={number} and stages: remove one of them'
        )
    return Stages.from_list(to_plain(given))
