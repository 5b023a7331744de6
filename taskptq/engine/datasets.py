"""Datasets for calibration: without wrappers and with other transforms."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.dataset import Compose
from mmengine.registry import DATASETS

__all__ = [
    'EMPTY_SET',
    'build_dataset',
    'image_path',
    'image_paths',
    'leaf_datasets',
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


def build_dataset(config: Any) -> Any:
    """Build a dataset from its config, or return a built one."""
    if isinstance(config, Mapping):
        config = DATASETS.build(config)
    if hasattr(config, 'full_init'):
        config.full_init()
    return config


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
    """Read one sample; mmengine would silently replace a dropped one."""
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
