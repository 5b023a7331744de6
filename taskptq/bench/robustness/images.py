"""Test images through a noisy pipeline, as batches for several models."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from mmengine.dataset import Compose

from taskptq.engine.datasets import leaf_datasets, read_sample, reads_labels
from taskptq.robustness.names import Noise
from taskptq.robustness.pipeline import NoisyPipeline

__all__ = ['NoisyImages', 'spread']

NO_PIPELINE = 'the data set has no pipeline of transforms'
NO_LABELS = (
    'the test pipeline loads no labels, and the loss to raise needs them'
)
# How many images are read in search of one that a noise changes.
PROBED = 64


def spread(count: int, most: int | None) -> list[int]:
    """Return indexes that are spread evenly over a set.

    >>> spread(10, 4)
    [0, 2, 5, 7]

    Args:
        count: Size of the set.
        most: Number of indexes; None takes all.
    """
    if most is None or most >= count:
        return list(range(count))
    return [count * number // most for number in range(most)]


class NoisyImages:
    """The test set of a runner, image by image.

    Args:
        loader: Its DataLoader: data set, collate function and batch size.
        max_images: Number of images, spread over the set; None takes all.
        seed: Seed of random noises.

    Raises:
        ValueError: If the set is empty.
    """

    def __init__(
        self, loader: Any, *, max_images: int | None = None, seed: int = 0
    ) -> None:
        self.leaves = leaf_datasets(loader.dataset)
        for leaf in self.leaves:
            if hasattr(leaf, 'full_init'):
                leaf.full_init()
        places = [
            (part, index)
            for part, leaf in enumerate(self.leaves)
            for index in range(len(leaf))
        ]
        if not places:
            raise ValueError('the test set has no images')
        self.places = [places[i] for i in spread(len(places), max_images)]
        self.collate = loader.collate_fn
        self.batch_size = getattr(loader, 'batch_size', None) or 1
        self.metainfo = getattr(loader.dataset, 'metainfo', None)
        self.seed = seed

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.places)

    def reader(self, noises: Sequence[Noise] = ()) -> NoisyReader:
        """Return what reads the images with image noises."""
        image_noises = [noise for noise in noises if not noise.on_model]
        if not image_noises:
            return NoisyReader(self, self.leaves, pipelines=[])
        leaves, pipelines = [], []
        for leaf in self.leaves:
            steps = getattr(
                getattr(leaf, 'pipeline', None), 'transforms', None
            )
            if steps is None:
                raise ValueError(NO_PIPELINE)
            noisy = copy.copy(leaf)
            noisy.pipeline = NoisyPipeline(
                steps, noises=image_noises, seed=self.seed
            )
            leaves.append(noisy)
            pipelines.append(noisy.pipeline)
        return NoisyReader(self, leaves, pipelines=pipelines)

    def labelled_reader(self) -> NoisyReader:
        """Return what reads the images with labels that move with them.

        Test pipelines load labels after the resize, in pixels of the file;
        a loss needs them in pixels of the input, so they are loaded first.

        Raises:
            ValueError: If there are no transforms that load labels.
        """
        leaves = []
        for part, leaf in enumerate(self.leaves):
            steps = getattr(
                getattr(leaf, 'pipeline', None), 'transforms', None
            )
            if steps is None or not any(map(reads_labels, steps)):
                raise ValueError(NO_LABELS)
            index = next(i for p, i in self.places if p == part)
            first = 1 + reading_step(leaf, steps, index)
            labels = [step for step in steps if reads_labels(step)]
            others = [step for step in steps if not reads_labels(step)]
            copied = copy.copy(leaf)
            copied.pipeline = Compose(
                [*others[:first], *labels, *others[first:]]
            )
            leaves.append(copied)
        return NoisyReader(self, leaves, pipelines=[])


def steps_of(leaf: Any) -> Sequence[Any] | None:
    """Return the built transforms of a data set, None if it has none."""
    pipeline = getattr(leaf, 'pipeline', None)
    return getattr(pipeline, 'transforms', None)


def reading_step(leaf: Any, steps: Sequence[Any], index: int) -> int:
    """Return the position of the transform that reads the image.

    Raises:
        ValueError: If no transform does.
    """
    results = leaf.get_data_info(index)
    for number, step in enumerate(steps):
        results = step(results)
        if results is not None and isinstance(results.get('img'), np.ndarray):
            return number
    raise ValueError('no transform of the test pipeline reads an image')


class NoisyReader:
    """Reads images with one choice of noises.

    Args:
        images: The set.
        leaves: Its data sets, with the pipelines to use.
        pipelines: Noisy pipelines among them.
    """

    def __init__(
        self,
        images: NoisyImages,
        leaves: Sequence[Any],
        *,
        pipelines: Sequence[NoisyPipeline],
    ) -> None:
        self.images = images
        self.leaves = leaves
        self.pipelines = pipelines

    @property
    def changed(self) -> int:
        """Number of images read so far in which a pixel changed."""
        return sum(pipeline.changed for pipeline in self.pipelines)

    def untouched(self) -> str:
        """Return why the noise changes nothing, '' if it changes an image."""
        if not self.pipelines:
            return ''
        for part, index in self.images.places[:PROBED]:
            read_sample(self.leaves[part], index)
            if self.changed:
                break
        reasons = sorted(set().union(*(p.reasons for p in self.pipelines)))
        found = self.changed
        for pipeline in self.pipelines:
            pipeline.changed = 0
        if found:
            return ''
        tried = min(PROBED, len(self.images))
        return '; '.join(reasons) or (
            f'no pixel of {tried} images comes out otherwise'
        )

    def samples(self, size: int | None = None) -> Iterator[list[Any]]:
        """Yield the samples of each batch.

        Args:
            size: Samples in a batch; None takes the config's number.

        Raises:
            ValueError: If the pipeline drops an image.
        """
        size = size or self.images.batch_size
        for start in range(0, len(self.images), size):
            yield [
                self._sample(*place)
                for place in self.images.places[start : start + size]
            ]

    def _sample(self, part: int, index: int) -> Any:
        sample = read_sample(self.leaves[part], index)
        if sample is None:
            raise ValueError(f'the test pipeline drops image {index}')
        return sample
