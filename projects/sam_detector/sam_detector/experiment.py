"""A table's float model, data and recipes, for its pictures."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from taskptq.apis import build_model, load_config
from taskptq.engine.calibration_config import CalibrationConfig
from taskptq.engine.calibration_data import (
    CalibrationBatches,
    EvaluationSource,
    build_calibration,
)
from taskptq.engine.checkpoint_file import (
    load_float_weights,
    local_file,
    read_checkpoint,
)
from taskptq.engine.recipe import Recipe
from taskptq.engine.recipe_source import with_recipe
from taskptq.recipes import resolve

__all__ = ['Experiment', 'current_commit', 'evenly_spaced', 'read_experiment']

WATCHED = ('taskptq', 'projects/sam_detector')
USED = (
    'model',
    'dataset',
    'config',
    'checkpoint',
    'recipes',
    'split',
    'calibration',
    'reconstruction',
    'rewrites',
)
OWN_SETTINGS = ('reconstruction', 'qconfig')


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Common settings of the rows of a ``*.table.yml``.

    Args:
        model: Name of the float model.
        dataset: Name of the data set.
        config: Config of the float model.
        checkpoint: Float checkpoint.
        recipes: Project whose methods take precedence over taskptq's.
        split: Dataloader of the config that evaluates.
        calibration: See ``CalibrationConfig``.
        reconstruction: Settings for every row that learns.
        rewrites: ModelRewrites before each row's own.
    """

    model: str
    dataset: str
    config: str
    checkpoint: str
    recipes: str
    split: str = 'test'
    calibration: Mapping[str, Any] = field(default_factory=dict)
    reconstruction: Mapping[str, Any] = field(default_factory=dict)
    rewrites: Sequence[Mapping[str, Any]] = ()

    def settings(self, row: str) -> dict[str, Any]:
        """Return the recipe of a row such as ``w4a4_ptq4sam-l``, plain.

        Raises:
            SettingError: If there is none.
        """
        return resolve(self.recipe_name(row))

    def recipe_name(self, row: str) -> str:
        """Return the full name of a row's recipe."""
        return f'{self.recipes}::{row}'

    def recipe(self, row: str, *, seed: int = 0) -> Recipe:
        """Return the table's recipe for a row.

        Args:
            row: See :meth:`settings`.
            seed: Seed of the row.
        """
        changes: dict[str, Any] = {}
        if self.settings(row).get('reconstruction') is not None:
            changes['reconstruction'] = dict(self.reconstruction)
        parts = with_recipe(
            [self.recipe_name(row), changes],
            owner='a table',
            qconfig=None,
            reconstruction=None,
            loss=None,
            rewrites=None,
        )
        return Recipe.from_config(
            parts['qconfig'],
            reconstruction=parts['reconstruction'],
            loss=parts['loss'],
            rewrites=[*self.rewrites, *(parts['rewrites'] or [])],
            calibration=self.images(seed).recipe(),
            seed=seed,
        )

    def images(self, seed: int) -> CalibrationConfig:
        """Return the settings of a seed's calibration images."""
        return CalibrationConfig.from_dict(self.calibration, seed=seed)

    def source(self) -> EvaluationSource:
        """Return the table's data set."""
        config = load_config(self.config)
        return EvaluationSource.from_config(config[f'{self.split}_dataloader'])

    def batches(self, images: CalibrationConfig) -> CalibrationBatches:
        """Return calibration batches: training images without labels."""
        train = load_config(self.config).train_dataloader.dataset
        return build_calibration(images, source=self.source(), default=train)

    def float_model(self, device: str = 'cpu') -> nn.Module:
        """Build the float model with its weights, without rewrites."""
        path = local_file(self.checkpoint)
        model = build_model(self.config, device=device)
        load_float_weights(model, read_checkpoint(path), path=path)
        return model


def read_experiment(path: str | Path) -> Experiment:
    """Read a ``*.table.yml``.

    Args:
        path: The file.

    Raises:
        ValueError: If some rows have their own settings, which would be
            ignored here.
    """
    content = yaml.safe_load(Path(path).read_text(encoding='utf-8'))
    for group in content['groups']:
        own = [key for key in OWN_SETTINGS if key in group]
        if own:
            raise ValueError(
                f'{path}: a group sets {own[0]}, which pictures ignore: move '
                'it to the top level'
            )
    return Experiment(**{key: content[key] for key in USED if key in content})


def evenly_spaced(total: int, *, count: int) -> list[int]:
    """Choose indices independently of results: middles of equal parts.

    >>> evenly_spaced(120, count=4)
    [15, 45, 75, 105]

    Raises:
        ValueError: If ``count`` is not between 1 and ``total``.
    """
    if not 1 <= count <= total:
        raise ValueError(
            f'count={count}: choose from 1 to {total}, the number of images'
        )
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def current_commit() -> str:
    """Return git's HEAD, with ``-dirty`` if the code has changed since."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ['git', *words], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ''

    head = git('rev-parse', '--verify', '--quiet', 'HEAD') or 'uncommitted'
    # Figures and texts next to the code do not change the measurement.
    changed = git(
        'status',
        '--porcelain',
        '--',
        *(f'{folder}/**/*.py' for folder in WATCHED),
    )
    return f'{head}-dirty' if changed else head
