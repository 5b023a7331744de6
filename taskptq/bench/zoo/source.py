"""What the zoo lists: ``configs/zoo.yml``.

    models:
    - table: configs/yolox/yolox_nano_coco-mini.table.yml
      metric: coco/bbox_mAP
      training_data: COCO
      weights: {origin: https://github.com/..., license: Apache-2.0}
      files:
      - {recipe: w8a8}
      - {recipe: w4a8_gptq-matched, seed: 1}
      - {recipe: [w8a8_mse, configs/_base_/deploy/onnxruntime.py], onnx: true}
      - {recipe: w8a8_mse, onnx: true, dynamic: true}

Config, float checkpoint, calibration and names come from the table. ``metric``
is a key of what ``taskptq test`` prints; it is the table's own unless given.
``dynamic`` exports for images of every size; ``export_images`` calibrate the
grids that the export adds (default: that of ``taskptq export``). Files of at
most 1.5 MB lie in the repository; ``commit: false`` and ``commit_onnx: false``
leave a file or its export to be made on demand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from taskptq.bench.table import Table, read_table
from taskptq.engine.calibration_config import CalibrationConfig
from taskptq.recipes.names import RecipeName, parse

SOURCE = Path('configs') / 'zoo.yml'
FOLDER = 'quantized'
MODEL_KEYS = ('table', 'metric', 'training_data', 'weights', 'files')
FILE_KEYS = (
    'recipe',
    'seed',
    'onnx',
    'dynamic',
    'export_images',
    'commit',
    'commit_onnx',
)
WEIGHTS_KEYS = ('origin', 'license')
FULL_BITS = (8, 8)


@dataclass(frozen=True, kw_only=True)
class ZooFile:
    """One quantized file of the zoo.

    Args:
        table: Table of its float model.
        recipe: Names of recipes, or config files; each is merged into those
            before.
        metric: Key of the result of ``taskptq test`` that it is judged by.
        seed: Seed of the calibration images and of the reconstruction.
        onnx: Whether it is exported for ONNX Runtime as well.
        dynamic: Whether the export takes images of every size.
        export_images: Calibration images of the export; None leaves the
            number to its command.
        commit: Whether it lies in the repository if it is small enough.
        commit_onnx: The same of its export.
        training_data: What the float model was trained with.
        weights: Where float weights of others come from: ``origin`` and
            ``license``; empty if they were trained here.
    """

    table: Table
    recipe: tuple[str, ...]
    metric: str
    seed: int = 0
    onnx: bool = False
    dynamic: bool = False
    export_images: int | None = None
    commit: bool = True
    commit_onnx: bool = True
    training_data: str | None = None
    weights: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Name of its recipe in file names.

        >>> ZooFile.label.fget.__name__
        'label'
        """
        names = [Path(one.rpartition('::')[2]).stem for one in self.recipe]
        return '-'.join(names)

    @property
    def name(self) -> str:
        """Return ``<model>_<recipe>_<dataset>``."""
        return f'{self.table.model}_{self.label}_{self.table.dataset}'

    @property
    def bits(self) -> RecipeName:
        """Bits and method, from the first recipe."""
        return parse(self.recipe[0])

    @property
    def low_bit(self) -> bool:
        """Whether it has fewer than 8 bits somewhere."""
        return (self.bits.weight, self.bits.activation) != FULL_BITS

    @property
    def num_images(self) -> int:
        """Number of its calibration images."""
        images = CalibrationConfig.from_dict(self.table.calibration, seed=0)
        return int(images.num_images)

    @property
    def folder(self) -> Path:
        """Folder of the published file."""
        return self.table.path.parent / FOLDER

    def export_settings(self) -> dict[str, Any]:
        """Return what decides on the export's content, where it is given."""
        images = self.export_images
        return {
            **({'dynamic': True} if self.dynamic else {}),
            **({} if images is None else {'export_images': images}),
        }

    def settings(self) -> dict[str, Any]:
        """Return what decides on the file's content, in plain types."""
        return {
            'config': self.table.config,
            'checkpoint': self.table.checkpoint,
            'recipe': list(self.recipe),
            'seed': self.seed,
            'num_images': self.num_images,
            'metric': self.metric,
        }


def read_zoo(path: Path = SOURCE, *, only: str | None = None) -> list[ZooFile]:
    """Read the list; a repository without one has an empty zoo.

    Args:
        path: The list, in a folder of the repository's top level, from which
            the tables' paths count.
        only: Regular expression to search in the files' names.

    Raises:
        ValueError: If the list has an unknown key, lacks one, or names two
            files alike.
    """
    if not path.is_file():
        return []
    content = yaml.safe_load(path.read_text(encoding='utf-8')) or {}
    _check(content, known=('models',), needed=('models',), where=str(path))
    files: dict[str, ZooFile] = {}
    for number, model in enumerate(content['models']):
        where = f'{path}: models[{number}]'
        for file in _files(model, root=path.parent.parent, where=where):
            if file.name in files:
                raise ValueError(f'{where} lists {file.name} a second time')
            files[file.name] = file
    return [
        file
        for file in files.values()
        if only is None or re.search(only, file.name)
    ]


def _files(model: Any, *, root: Path, where: str) -> Iterator[ZooFile]:
    _check(model, known=MODEL_KEYS, needed=('table', 'files'), where=where)
    table = read_table(root / model['table'])
    weights = model.get('weights', {})
    _check(weights, known=WEIGHTS_KEYS, needed=(), where=f'{where}.weights')
    for number, entry in enumerate(model['files']):
        place = f'{where}.files[{number}]'
        _check(entry, known=FILE_KEYS, needed=('recipe',), where=place)
        recipe = entry['recipe']
        names = [recipe] if isinstance(recipe, str) else recipe
        yield ZooFile(
            table=table,
            recipe=tuple(names),
            metric=model.get('metric', table.metric),
            seed=int(entry.get('seed', 0)),
            onnx=bool(entry.get('onnx', False)),
            dynamic=bool(entry.get('dynamic', False)),
            export_images=entry.get('export_images'),
            commit=bool(entry.get('commit', True)),
            commit_onnx=bool(entry.get('commit_onnx', True)),
            training_data=model.get('training_data'),
            weights=weights,
        )


def _check(
    content: Any, *, known: Sequence[str], needed: Sequence[str], where: str
) -> None:
    """Raise a ValueError if keys are missing or unknown."""
    if not isinstance(content, Mapping):
        raise ValueError(f'{where} must hold keys and values')
    for key in content:
        if key not in known:
            raise ValueError(
                f'{where} has unknown key {key!r}; known are '
                f'{", ".join(known)}'
            )
    for key in needed:
        if key not in content:
            raise ValueError(f'{where} lacks the key {key!r}')
