"""Calibration images: the training split through the test pipeline.

A calibration set is a lazy sequence of collated batches. Only file paths are
kept, so memory does not grow with the number of images. The test pipeline has
no randomness, so reading a batch twice gives the same tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.dataset import Compose, pseudo_collate
from mmengine.dist import get_dist_info
from mmengine.logging import print_log
from mmengine.registry import FUNCTIONS

from taskptq.engine.calibration_config import CalibrationConfig
from taskptq.engine.datasets import (
    EMPTY_SET,
    build_dataset,
    image_path,
    image_paths,
    leaf_datasets,
    pipeline_steps,
    read_sample,
    reads_labels,
    step_name,
    with_pipeline,
    works_on,
)
from taskptq.robustness.pipeline import MixedPipeline

__all__ = [
    'CalibrationBatches',
    'EvaluationSource',
    'build_calibration',
]

AUGMENTED_STEPS = ('TestTimeAug',)


@dataclass(frozen=True, kw_only=True)
class EvaluationSource:
    """Parts of the following evaluation that calibration uses.

    Args:
        dataset: Dataset of the evaluation, built.
        collate: Function from a list of samples to a batch.
        batch_size: Images per batch.
        plain_pipeline: Transforms to use if the dataset's are for test-time
            augmentation, or None.
    """

    dataset: Any
    collate: Callable[[Sequence[Any]], Any]
    batch_size: int
    plain_pipeline: Sequence[Any] | None = None

    @classmethod
    def from_loader(
        cls, loader: Any, *, plain_pipeline: Sequence[Any] | None = None
    ) -> EvaluationSource:
        """Read the parts from a DataLoader.

        Args:
            loader: DataLoader of the evaluation.
            plain_pipeline: See the class.
        """
        return cls(
            dataset=loader.dataset,
            collate=loader.collate_fn,
            batch_size=getattr(loader, 'batch_size', None) or 1,
            plain_pipeline=plain_pipeline,
        )

    @classmethod
    def from_config(cls, loader: Mapping[str, Any]) -> EvaluationSource:
        """Build only the dataset of a dataloader config.

        Args:
            loader: ``test_dataloader`` or ``val_dataloader`` of a config.
        """
        dataset = build_dataset(loader['dataset'])
        collate = loader.get('collate_fn') or {'type': 'pseudo_collate'}
        if isinstance(collate, Mapping):
            function = FUNCTIONS.get(collate['type'])
            options = {k: v for k, v in collate.items() if k != 'type'}
            if function is None:
                raise ValueError(
                    f'collate_fn {collate["type"]!r} is not registered'
                )
            return cls(
                dataset=dataset,
                collate=_partial(function, options),
                batch_size=loader.get('batch_size', 1),
            )
        return cls(
            dataset=dataset,
            collate=collate,
            batch_size=loader.get('batch_size', 1),
        )


def _partial(
    function: Callable[..., Any], options: Mapping[str, Any]
) -> Callable[..., Any]:
    """Bind options to a collate function."""
    if not options:
        return function

    def collate(samples: Sequence[Any]) -> Any:
        return function(samples, **options)

    return collate


def test_steps(
    config: CalibrationConfig, source: EvaluationSource
) -> list[Any] | None:
    """Choose the transforms for the calibration images.

    Raises:
        ValueError: If there is only a pipeline for test-time augmentation.
    """
    if config.pipeline is not None:
        return list(config.pipeline)
    steps = pipeline_steps(source.dataset)
    if steps is None or not any(
        step_name(step) in AUGMENTED_STEPS for step in steps
    ):
        return steps
    if source.plain_pipeline is None:
        raise ValueError(
            'the evaluation pipeline is for test-time augmentation: set '
            'calibration.pipeline to the transforms of a plain test'
        )
    return list(source.plain_pipeline)


class CalibrationBatches(Sequence[Any]):
    """Collated batches, read on access.

    Args:
        datasets: Datasets with the calibration pipeline.
        chosen: (dataset, index) of this rank's images, in order.
        batch_size: Images per batch.
        collate: Function from a list of samples to a batch.
        paths: Resolved paths of all images that could have been chosen.
    """

    def __init__(
        self,
        datasets: Sequence[Any],
        *,
        chosen: Sequence[tuple[int, int]],
        batch_size: int,
        collate: Callable[[Sequence[Any]], Any],
        paths: set[str],
    ) -> None:
        self.datasets = datasets
        self.chosen = list(chosen)
        self.batch_size = batch_size
        self.collate = collate
        self.paths = paths

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-len(self.chosen) // self.batch_size)

    def __getitem__(self, index: Any) -> Any:
        """Read one batch, or the list of a slice of them."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f'batch {index} of {len(self)}')
        start = (index % len(self)) * self.batch_size
        wanted = self.chosen[start : start + self.batch_size]
        return self.collate([self.sample(*place) for place in wanted])

    def __iter__(self) -> Iterator[Any]:
        """Read the batches one after another."""
        return (self[index] for index in range(len(self)))

    def sample(self, part: int, index: int) -> Any:
        """Read one image.

        Raises:
            FileNotFoundError: If the image does not exist.
            ValueError: If the pipeline drops the image.
        """
        sample = read_sample(self.datasets[part], index)
        if sample is None:
            raise ValueError(
                'the calibration pipeline drops image '
                f'{image_path(self.datasets[part], index)}: set '
                'calibration.pipeline to transforms that keep every image'
            )
        return sample

    def check_overlap(self, evaluated: Any) -> None:
        """Refuse a set that shares images with an evaluation.

        Args:
            evaluated: Dataset of the evaluation, built.

        Raises:
            ValueError: If an image is in both.
        """
        others = image_paths(evaluated)
        if not self.paths or not others:
            print_log(
                'The datasets have no image paths, so an overlap of '
                'calibration and evaluation cannot be detected.',
                logger='current',
                level=30,
            )
        shared = sorted(self.paths & others)
        if shared:
            raise ValueError(
                f'{len(shared)} calibration images are in the evaluation '
                f'split, e.g. {shared[0]}: set calibration.dataset to another '
                'split, or calibration.allow_overlap=True'
            )


def choose(
    places: Sequence[tuple[int, int]], *, num_images: int, seed: int
) -> list[tuple[int, int]]:
    """Draw images without replacement and return this rank's share.

    Ranks take turns, so together they use the images of a single process.

    Args:
        places: (dataset, index) of every image.
        num_images: Number of images to draw, over all ranks.
        seed: Seed of the draw.

    Raises:
        ValueError: If there are too few images, or fewer than ranks.
    """
    rank, world_size = get_dist_info()
    if not places:
        raise ValueError(EMPTY_SET)
    if len(places) < num_images:
        raise ValueError(
            f'calibration.num_images is {num_images}, but the calibration '
            f'set has {len(places)} images: ask for at most that many, with '
            f'--num-images or calibration=dict(num_images={len(places)})'
        )
    if num_images < world_size:
        raise ValueError(
            f'calibration.num_images is {num_images}, fewer than the '
            f'{world_size} processes: ask for at least one image each'
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(places), generator=generator)[:num_images]
    return [places[i] for i in order.tolist()][rank::world_size]


def list_images(
    datasets: Sequence[Any],
) -> tuple[list[tuple[int, int]], set[str]]:
    """List every image once, even if datasets repeat it.

    Returns:
        (dataset, index) of each image, and the resolved paths.
    """
    places = []
    paths: set[str] = set()
    for part, dataset in enumerate(datasets):
        for index in range(len(dataset)):
            path = image_path(dataset, index)
            if path is None or path not in paths:
                places.append((part, index))
            if path is not None:
                paths.add(path)
    return places, paths


def build_calibration(
    config: CalibrationConfig, *, source: EvaluationSource, default: Any = None
) -> CalibrationBatches:
    """Build the calibration batches of this rank.

    Args:
        config: Settings of the calibration.
        source: The evaluation that follows.
        default: Dataset config or dataset to use if ``config`` has none.

    Raises:
        ValueError: If there is no dataset, it is empty, has too few images,
            or shares images with the evaluation.
    """
    wrapped = config.dataset if config.dataset is not None else default
    if wrapped is None:
        raise ValueError(
            'the config has no train_dataloader to calibrate with: set '
            'calibration.dataset to a dataset of training images'
        )
    leaves = leaf_datasets(wrapped)
    steps = test_steps(config, source)
    datasets = [with_pipeline(leaf, steps) for leaf in leaves]
    places, paths = list_images(datasets)
    chosen = choose(places, num_images=config.num_images, seed=config.seed)
    if steps is not None:
        plain = [step for step in steps if not reads_labels(step)]
        _drop_labels(datasets, plain=plain, place=chosen[0])
    if config.noise is not None:
        _add_noise(datasets, config)
    batches = CalibrationBatches(
        datasets,
        chosen=chosen,
        batch_size=config.batch_size or source.batch_size,
        collate=source.collate or pseudo_collate,
        paths=paths,
    )
    if not config.allow_overlap:
        batches.check_overlap(source.dataset)
    return batches


def _drop_labels(
    datasets: Sequence[Any], *, plain: Sequence[Any], place: tuple[int, int]
) -> None:
    """Remove the steps that read labels, if the others work without them."""
    part, index = place
    for number, dataset in enumerate(datasets):
        if not hasattr(dataset, 'pipeline'):
            continue
        before = dataset.pipeline
        dataset.pipeline = Compose(plain)
        if not works_on(dataset, index if number == part else 0):
            dataset.pipeline = before


def _add_noise(datasets: Sequence[Any], config: CalibrationConfig) -> None:
    """Give each image one of the configured noises.

    Raises:
        ValueError: If a data set has no pipeline.
    """
    for dataset in datasets:
        steps = getattr(getattr(dataset, 'pipeline', None), 'transforms', None)
        if steps is None:
            raise ValueError(
                'calibration.noise changes images within a pipeline, and '
                f'{type(dataset).__name__} has none: leave noise out'
            )
        dataset.pipeline = MixedPipeline(
            steps, names=config.noise or (), seed=config.seed
        )
