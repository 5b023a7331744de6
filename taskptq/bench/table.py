"""Tables of results: the contents of a ``*.table.yml``."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

SUFFIX = '.table.yml'
SPLITS = ('test', 'val')
# Suffix of a method evaluated like published code; alone it means QDrop.
PUBLISHED = 'published-eval'
GROUP_KEYS = ('methods', 'bits', 'seeds', 'reconstruction', 'qconfig', 'scope')


@dataclass(frozen=True, kw_only=True)
class Row:
    """One quantized model of a table.

    Args:
        method: Name of the method, as tables show it; for
            ``published-eval`` and ``<method>+published-eval`` see
            ``taskptq/bench/published_eval.py``, for other tools'
            (``ort-minmax``, ...) ``taskptq/bench/peers.py``.
        bits: Bit widths, e.g. ``w2a4``.
        seed: Seed for choosing images and for all other randomness.
        recipe: Name of the recipe that the settings below change.
        rewrites: ModelRewrites that run before the recipe's.
        reconstruction: Settings that override the recipe's.
        qconfig: Quantizer settings that override the recipe's.
        scope: ``model``, or ``head`` if only the head is quantized.
    """

    method: str
    bits: str
    seed: int
    recipe: str
    rewrites: Sequence[Mapping[str, Any]] = ()
    reconstruction: Mapping[str, Any] = field(default_factory=dict)
    qconfig: Mapping[str, Any] = field(default_factory=dict)
    scope: str = 'model'

    @property
    def name(self) -> str:
        """Name that ``--rows`` is matched against, e.g. ``qdrop w2a4 0``."""
        return f'{self.method} {self.bits} {self.seed}'

    @property
    def published(self) -> bool:
        """Whether it is evaluated like published code."""
        return self.method.endswith(PUBLISHED)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Contents of a ``*.table.yml``.

    Args:
        path: The file.
        model: Name of the float model.
        dataset: Name of the data set.
        config: Config of the float model.
        checkpoint: Float checkpoint.
        metric: Key of the evaluator's result that is a row's value.
        groups: Methods x bits x seeds, in the order in which they run.
        split: ``test``, or ``val`` for choosing settings.
        grounds: Config with the test sets of the table. Its keys replace
            those of ``config``: loaders and evaluators of several sets, and
            optionally ``reference_evaluator``, which first runs on the float
            model. ``{work_dir}`` in the evaluators is the table's folder.
        prepare: Command that makes a checkpoint that isn't shipped.
        discriminating: Bits at which methods are compared: the highest at
            which plain quantization (MSE) loses at least 10 % of float.
        calibration: See ``CalibrationConfig``.
        reconstruction: Settings of every row with a reconstruction.
        recipes: Project whose methods take precedence over taskptq's, e.g.
            ``sam_detector``.
        rewrites: ModelRewrites of the float model, which is measured with
            them; they are part of every row's recipe, before its own.
        columns: Header -> key of ``metrics``, for the printed table.
        targets: See ``targets.py``.
        metafile: ``task``, ``metric`` and ``factor`` for metafile.yml.
    """

    path: Path
    model: str
    dataset: str
    config: str
    checkpoint: str
    metric: str
    groups: Sequence[Mapping[str, Any]]
    split: str = 'test'
    grounds: str | None = None
    prepare: str | None = None
    discriminating: str | None = None
    calibration: Mapping[str, Any] = field(default_factory=dict)
    reconstruction: Mapping[str, Any] = field(default_factory=dict)
    recipes: str | None = None
    rewrites: Sequence[Mapping[str, Any]] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    targets: Sequence[Mapping[str, Any]] = ()
    metafile: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Return ``<model>_<dataset>``, the stem of all its files."""
        return f'{self.model}_{self.dataset}'

    @property
    def foreign(self) -> bool:
        """Return whether others trained the checkpoint."""
        return self.checkpoint.startswith('data/') or self.prepare is not None

    @property
    def results(self) -> Path:
        """Return the results file next to the table."""
        return self.path.parent / 'results' / f'{self.name}.json'

    def rows(self, pattern: str | None = None) -> list[Row]:
        """List the rows, group by group.

        Args:
            pattern: Regular expression to search in the rows' names.
        """
        found = {
            row.name: row
            for group in reversed(self.groups)
            for row in self._expand(group)
        }
        ordered: dict[str, Row] = {}
        for group in self.groups:
            for row in self._expand(group):
                ordered.setdefault(row.name, found[row.name])
        return [
            row
            for row in ordered.values()
            if pattern is None or re.search(pattern, row.name)
        ]

    def recipe_name(self, bits: str, *, method: str) -> str:
        """Return the name of the recipe that makes a row's model.

        Args:
            bits: Bit widths, e.g. ``w2a4``.
            method: Name of the row's method; ``+`` stands for ``-``.
        """
        name = f'{bits}_{_recipe_of(method)}'
        return name if self.recipes is None else f'{self.recipes}::{name}'

    def command(self, row: Row) -> str:
        """Return the command line that measures a row again."""
        pattern = '^' + row.name.replace('+', r'\+') + '$'
        words = [
            'python',
            'tools/run_table.py',
            self.path.as_posix(),
            '--redo',
            '--rows',
            pattern,
        ]
        return shlex.join(words)

    def _expand(self, group: Mapping[str, Any]) -> Iterator[Row]:
        for bits in _as_list(group['bits']):
            for method in _as_list(group['methods']):
                for seed in _as_list(group.get('seeds', [0])):
                    yield Row(
                        method=method,
                        bits=bits,
                        seed=int(seed),
                        recipe=self.recipe_name(bits, method=method),
                        rewrites=self.rewrites,
                        reconstruction={
                            **self.reconstruction,
                            **group.get('reconstruction', {}),
                        },
                        qconfig=group.get('qconfig', {}),
                        scope=group.get('scope', 'model'),
                    )


def _recipe_of(method: str) -> str:
    """Return the method whose recipe makes the model.

    >>> _recipe_of('ptq4sam-l+published-eval'), _recipe_of('published-eval')
    ('ptq4sam-l', 'qdrop')
    >>> _recipe_of('centering+agq')
    'centering-agq'
    """
    recipe = method.removesuffix(PUBLISHED).removesuffix('+') or 'qdrop'
    return recipe.replace('+', '-')


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def read_table(path: str | Path) -> Table:
    """Read a ``*.table.yml``.

    Args:
        path: The file.

    Raises:
        ValueError: If a key is unknown or missing, or the file's name is not
            ``<model>_<dataset>.table.yml``.
        FileNotFoundError: If there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'there is no table {path}')
    content = yaml.safe_load(path.read_text(encoding='utf-8'))
    known = [item.name for item in fields(Table) if item.name != 'path']
    needed = ['model', 'dataset', 'config', 'checkpoint', 'metric', 'groups']
    _check_keys(content, known=known, needed=needed, where=str(path))
    for number, group in enumerate(content['groups']):
        _check_keys(
            group,
            known=GROUP_KEYS,
            needed=('methods', 'bits'),
            where=f'{path}: groups[{number}]',
        )
    table = Table(path=path, **content)
    if table.split not in SPLITS:
        raise ValueError(
            f'{path}: split is {table.split!r}, choose one of {SPLITS}'
        )
    if path.name != table.name + SUFFIX:
        raise ValueError(
            f'{path} describes {table.name}: name it {table.name}{SUFFIX}'
        )
    return table


def _check_keys(
    content: Any, *, known: Sequence[str], needed: Sequence[str], where: str
) -> None:
    """Raise a ValueError if keys are missing or unknown."""
    if not isinstance(content, Mapping):
        raise ValueError(f'{where} must hold keys and values')
    unknown = [key for key in content if key not in known]
    missing = [key for key in needed if key not in content]
    if unknown:
        raise ValueError(
            f'{where} has unknown key {unknown[0]!r}; known are '
            f'{", ".join(known)}'
        )
    if missing:
        raise ValueError(f'{where} lacks the key {missing[0]!r}')
