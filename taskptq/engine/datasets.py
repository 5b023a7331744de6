"""Datasets for calibration: without wrappers and with other transforms."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from mmengine.dataset import Compose
from mmengine.registry import DATASETS

from taskptq.engine.import_style import type_name

__all__ = [
    'EMPTY_SET',
    'build_dataset',
    'image_path',
    'image_paths',
    'leaf_datasets',
    'loader_dataset',
    'loader_pipeline',
    'named_files',
    'pipeline_steps',
    'read_sample',
    'reads_labels',
    'step_name',
    'with_pipeline',
    'works_on',
]

# Steps that read labels, which no test pipeline needs for its inputs.
ANNOTATION_STEPS = ('Annotations', 'Panoptic')
EMPTY_SET = (
    'the calibration set is empty: check calibration.dataset, its '
    'ann_file, data_prefix and filter_cfg'
)


def loader_pipeline(loader: Any) -> Sequence[Any] | None:
    """Return the transforms in a data loader's config; None if it has none."""
    if not isinstance(loader, Mapping):
        return None
    leaf = leaf_datasets(loader['dataset'])[0]
    return leaf.get('pipeline') if isinstance(leaf, Mapping) else None


def loader_dataset(loader: Any) -> Any:
    """Return the dataset of a data loader, or its config; None for None."""
    if loader is None or isinstance(loader, Mapping):
        return None if loader is None else loader['dataset']
    return loader.dataset


def build_dataset(config: Any) -> Any:
    """Build a dataset from its config, or return a built one.

    Raises:
        FileNotFoundError: If one of its files does not exist.
    """
    with named_files(config):
        if isinstance(config, Mapping):
            config = DATASETS.build(config)
        if hasattr(config, 'full_init'):
            config.full_init()
    return config


@contextmanager
def named_files(dataset: Any) -> Iterator[None]:
    """Let errors of missing files name the data set and its settings.

    Args:
        dataset: The data set that is read, or its config.

    Raises:
        FileNotFoundError: With the names.
    """
    try:
        yield
    except FileNotFoundError as error:
        kind = type(dataset).__name__
        if isinstance(dataset, Mapping):
            kind = type_name(dataset.get('type'))
        raise FileNotFoundError(
            f'{kind} finds no {error.filename or error}: check its data_root, '
            'ann_file and data_prefix in the config'
        ) from error


def leaf_datasets(dataset: Any) -> list[Any]:
    """Remove wrappers (mix, repeat, class balance, concatenation).

    Args:
        dataset: Dataset config or built dataset, wrapped at any depth.

    Returns:
        The configs or datasets inside, in order.
    """

    def inner(name: str) -> Any:
        if isinstance(dataset, Mapping):
            return dataset.get(name)
        return getattr(dataset, name, None)

    if inner('datasets') is not None:
        return [
            leaf for part in inner('datasets') for leaf in leaf_datasets(part)
        ]
    for name in ('dataset', '_dataset'):
        if inner(name) is not None:
            return leaf_datasets(inner(name))
    return [dataset]


def step_name(step: Any) -> str:
    """Return the class name of a transform or of its config."""
    if isinstance(step, Mapping):
        step = step['type']
    if isinstance(step, str):
        return step.rpartition('.')[2]
    return step.__name__ if isinstance(step, type) else type(step).__name__


def pipeline_steps(dataset: Any) -> list[Any] | None:
    """Return the transforms of a built dataset, None if it has none."""
    pipeline = getattr(leaf_datasets(dataset)[0], 'pipeline', None)
    if pipeline is None:
        return None
    return list(getattr(pipeline, 'transforms', pipeline))


def reads_labels(step: Any) -> bool:
    """Return whether a transform loads or filters annotations."""
    name = step_name(step)
    return any(word in name for word in ANNOTATION_STEPS)


def build_filled(leaf: Any) -> Any:
    """Build a dataset and check that it has images.

    Raises:
        ValueError: If it has none; mmengine's own message is about arrays.
    """
    try:
        return build_dataset(leaf)
    except ValueError as error:
        if 'need at least one array' not in str(error):
            raise
        raise ValueError(EMPTY_SET) from error


def with_pipeline(leaf: Any, steps: Sequence[Any] | None) -> Any:
    """Build a dataset, or copy a built one, with other transforms.

    Args:
        leaf: Dataset config or dataset without wrappers.
        steps: Transforms; None leaves the dataset's own.

    Raises:
        ValueError: If it has no images.
    """
    if steps is None:
        return build_filled(leaf)
    if isinstance(leaf, Mapping):
        if 'pipeline' in leaf:
            leaf = {**leaf, 'pipeline': []}
        dataset = build_filled(leaf)
    else:
        dataset = copy.copy(build_filled(leaf))
    if hasattr(dataset, 'pipeline'):
        dataset.pipeline = Compose(steps)
    return dataset


def read_sample(dataset: Any, index: int) -> Any:
    """Read one sample; mmengine would silently replace a dropped one.

    Raises:
        FileNotFoundError: If the image does not exist.
    """
    with named_files(dataset):
        if hasattr(dataset, 'prepare_data'):
            return dataset.prepare_data(index)
        return dataset[index]


def image_path(dataset: Any, index: int) -> str | None:
    """Return the resolved path(s) of an image, None if it has none."""
    if not hasattr(dataset, 'get_data_info'):
        return None
    path = dataset.get_data_info(index).get('img_path')
    if isinstance(path, (list, tuple)):
        return '|'.join(os.path.realpath(part) for part in path)
    return None if path is None else os.path.realpath(path)


def image_paths(dataset: Any) -> set[str]:
    """Return the resolved paths of all images of a built dataset."""
    found: set[str] = set()
    for leaf in leaf_datasets(dataset):
        paths = (image_path(leaf, index) for index in range(len(leaf)))
        found.update(path for path in paths if path is not None)
    return found


def works_on(dataset: Any, index: int) -> bool:
    """Return whether a dataset's pipeline runs on an image."""
    try:
        return read_sample(dataset, index) is not None
    except (KeyError, AssertionError, AttributeError, TypeError, ValueError):
        # Raised by transforms if a key of the results is missing.
        return False
