"""Collated batches: their length, metainfo and parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

__all__ = ['BatchParts', 'batch_length', 'batch_metas']


def batch_length(batch: Any) -> int:
    """Return the number of images of a collated batch, 0 if unknown."""
    if isinstance(batch, dict) and 'inputs' in batch:
        inputs = batch['inputs']
        # Models with several inputs name them; each holds all images.
        first = (
            next(iter(inputs.values()))
            if (isinstance(inputs, dict) and inputs)
            else inputs
        )
        return len(first)
    if isinstance(batch, torch.Tensor):
        return int(batch.shape[0])
    if isinstance(batch, list | tuple) and batch:
        return batch_length(batch[0])
    return 0


def batch_metas(batch: Any) -> list[Mapping[str, Any]]:
    """Return the metainfo of each image of a collated batch.

    Args:
        batch: Collated batch; without ``data_samples`` the metas are empty.
    """
    samples = batch.get('data_samples') if isinstance(batch, dict) else None
    if samples is None:
        return [{} for _ in range(batch_length(batch))]
    return [dict(getattr(sample, 'metainfo', sample)) for sample in samples]


class BatchParts(Sequence[Any]):
    """Smaller batches, cut from collated ones when they are read.

    Args:
        batches: Collated batches.
        size: Most images per part.

    Raises:
        ValueError: If a batch cannot be split.
    """

    def __init__(self, batches: Sequence[Any], size: int) -> None:
        self._batches = batches
        self._places: list[tuple[int, int, int]] = []  # batch, start, end
        for number, batch in enumerate(batches):
            length = batch_length(batch)
            if not length:
                raise ValueError(
                    f'network_batch_size={size}: cannot split calibration '
                    f'batch {number} ({type(batch).__name__}) into images; '
                    'remove the setting to draw whole batches'
                )
            self._places += [
                (number, start, min(start + size, length))
                for start in range(0, length, size)
            ]

    def __len__(self) -> int:
        """Return the number of parts."""
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        """Return one part, or a list of parts for a slice."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        number, start, end = self._places[index]
        batch = self._batches[number]
        return _part(batch, slice(start, end), length=batch_length(batch))

    def __iter__(self) -> Iterator[Any]:
        """Yield the parts in order."""
        return (self[index] for index in range(len(self)))


def _part(value: Any, rows: slice, *, length: int) -> Any:
    """Slice every tensor and list that has one entry per image."""
    if isinstance(value, dict):
        return {
            key: _part(item, rows, length=length)
            for key, item in value.items()
        }
    sized = isinstance(value, list | tuple) or (
        isinstance(value, torch.Tensor) and value.dim() > 0
    )
    return value[rows] if sized and len(value) == length else value
