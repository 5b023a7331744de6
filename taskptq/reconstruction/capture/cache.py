"""Activation cache: a byte budget in memory, the rest on disk."""

from __future__ import annotations

import shutil
from collections.abc import Hashable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from taskptq.reconstruction.capture.disk import (
    Estimate,
    check_room,
    disk_full,
    new_folder,
    remove_abandoned,
)
from taskptq.reconstruction.config import ReconstructionConfig

# Below this many elements, rows are not compared.
SMALL = 1 << 14


def cache_of(
    config: ReconstructionConfig, *, directory: Path | None = None
) -> ActivationCache:
    """Make an empty cache with the budgets of the settings.

    What killed runs left in its folder is removed.

    Args:
        config: Settings.
        directory: Where spilled files go, instead of ``cache_dir``.
    """
    if directory is None and config.cache_dir is not None:
        directory = Path(config.cache_dir)
    remove_abandoned(directory)
    return ActivationCache(
        config.cache_bytes,
        directory=directory,
        max_disk_bytes=config.cache_disk_bytes,
    )


class ActivationCache:
    """Store tensors by key; those over the budget go to files.

    Of a tensor whose rows are all equal, one is stored: the image features
    and their positions, repeated for each prompt of an image.

    Files are read row by row with ordinary reads: a memory map would count
    as resident memory, which the budget is there to bound.

    Images lie channels last, whatever they came as: convolutions run faster
    on it. Who needs them in plain memory asks for ``plain=True``.

    Args:
        max_bytes: Budget of the tensors held in memory.
        directory: Where spilled files go; None is the temporary folder. A
            folder of its own is made there on the first spill; the cache
            removes it in ``close``, the next run if this one is killed.
        max_disk_bytes: Budget of the tensors on disk; None sets none.
    """

    def __init__(
        self,
        max_bytes: int,
        *,
        directory: str | Path | None = None,
        max_disk_bytes: int | None = None,
    ) -> None:
        self.max_bytes = max_bytes
        self.max_disk_bytes = max_disk_bytes
        self.used_bytes = 0
        self.disk_bytes = 0
        self.spilled_bytes = 0  # in all, also what is deleted again
        self._held: dict[Hashable, Tensor] = {}
        self._files: dict[Hashable, _File] = {}
        self._repeats: dict[Hashable, int] = {}  # rows of which one is stored
        self.directory = None if directory is None else Path(directory)
        self._folder: Path | None = None
        self._counter = 0

    def reserve(self, needed: Estimate) -> None:
        """Check that there is room on disk.

        Args:
            needed: What will be stored.

        Raises:
            ValueError: If it does not fit; on every rank.
        """
        check_room(needed, folder=self.directory, budget=self.max_disk_bytes)

    def put(self, key: Hashable, tensor: Tensor) -> None:
        """Store a copy of a tensor, replacing an older one of that key.

        Raises:
            OSError: If the disk is full or its budget used up.
        """
        self.delete(key)
        tensor = tensor.detach()
        if _is_one_row(tensor):
            self._repeats[key] = tensor.shape[0]
            tensor = tensor[:1]
        size = tensor.numel() * tensor.element_size()
        if self.used_bytes + size <= self.max_bytes:
            self._held[key] = _to_layout(tensor).clone(
                memory_format=torch.contiguous_format
            )
            self.used_bytes += size
            return
        self._check_disk(size)
        self._files[key] = _File(self._new_path(), _to_layout(tensor))
        self.disk_bytes += size
        self.spilled_bytes += size

    def _check_disk(self, size: int) -> None:
        limit = self.max_disk_bytes
        if limit is not None and self.disk_bytes + size > limit:
            raise OSError(
                f'reconstruction.cache_disk_bytes={limit} is used up, and an '
                f'activation of {size:,} bytes is still to be stored: raise '
                'it or reconstruction.cache_bytes, or use fewer images'
            )

    def get(self, key: Hashable, *, plain: bool = False) -> Tensor:
        """Return the whole tensor (the stored one: do not write to it).

        Args:
            key: Of the tensor.
            plain: In plain memory, not channels last.
        """
        if key in self._held:
            tensor = _from_layout(self._held[key])
        else:
            tensor = _from_layout(self._files[key].read())
        if key in self._repeats:
            tensor = tensor.expand(self._repeats[key], *tensor.shape[1:])
        return tensor.contiguous() if plain else tensor

    def rows(
        self, key: Hashable, index: list[int], *, plain: bool = False
    ) -> Tensor:
        """Return chosen rows (of axis 0), in the order asked for.

        Args:
            key: Of the tensor.
            index: Numbers of the rows.
            plain: As in :meth:`get`.
        """
        if key in self._repeats:
            index = [0] * len(index)
        if key in self._held:
            rows = _from_layout(self._held[key][index])
        else:
            rows = _from_layout(self._files[key].read_rows(index))
        return rows.contiguous() if plain else rows

    def shape(self, key: Hashable) -> tuple[int, ...]:
        """Return the tensor's shape, without reading it."""
        held = self._held.get(key)
        shape = self._files[key].shape if held is None else tuple(held.shape)
        if len(shape) == 4:
            batch, height, width, channels = shape
            shape = (batch, channels, height, width)
        if key in self._repeats:
            shape = (self._repeats[key], *shape[1:])
        return shape

    def dtype(self, key: Hashable) -> torch.dtype:
        """Return the tensor's type, without reading it."""
        held = self._held.get(key)
        return self._files[key].dtype if held is None else held.dtype

    def delete(self, key: Hashable) -> None:
        """Forget one tensor; nothing happens if it is not there."""
        self._repeats.pop(key, None)
        if key in self._held:
            tensor = self._held.pop(key)
            self.used_bytes -= tensor.numel() * tensor.element_size()
        if key in self._files:
            file = self._files.pop(key)
            file.path.unlink(missing_ok=True)
            self.disk_bytes -= file.num_bytes

    def __contains__(self, key: Hashable) -> bool:
        """Whether a key is stored."""
        return key in self._held or key in self._files

    def close(self) -> None:
        """Forget everything and remove the files."""
        self._held.clear()
        self._files.clear()
        self._repeats.clear()
        self.used_bytes = self.disk_bytes = 0
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _new_path(self) -> Path:
        if self._folder is None:
            self._folder = new_folder(self.directory)
        self._counter += 1
        return self._folder / f'{self._counter:06d}.bin'


def stored_bytes(tensor: Tensor) -> int:
    """Return how many bytes a cache takes for a tensor."""
    rows = tensor.detach()
    rows = rows[:1] if _is_one_row(rows) else rows
    return rows.numel() * rows.element_size()


def _is_one_row(tensor: Tensor) -> bool:
    """Whether all rows of a large tensor are equal."""
    if tensor.dim() < 2 or tensor.shape[0] < 2 or tensor.numel() < SMALL:
        return False
    if not torch.equal(tensor[0], tensor[-1]):
        return False
    return all(torch.equal(tensor[0], row) for row in tensor[1:-1])


def _to_layout(tensor: Tensor) -> Tensor:
    """B x C x H x W -> B x H x W x C: convolutions run faster on it."""
    return tensor.permute(0, 2, 3, 1) if tensor.dim() == 4 else tensor


def _from_layout(tensor: Tensor) -> Tensor:
    """Undo :func:`_to_layout`; the memory stays channels last."""
    return tensor.permute(0, 3, 1, 2) if tensor.dim() == 4 else tensor


class _File:
    """One spilled tensor: raw rows in a file."""

    def __init__(self, path: Path, tensor: Tensor) -> None:
        self.path = path
        self.shape = tuple(tensor.shape)
        self.dtype = tensor.dtype
        self.device = tensor.device
        rows = tensor.shape[0] if tensor.dim() else 1
        self.row_bytes = tensor.numel() // max(rows, 1) * tensor.element_size()
        self.num_bytes = tensor.numel() * tensor.element_size()
        data = tensor.cpu().contiguous().reshape(-1).view(torch.uint8)
        try:
            with path.open('wb') as file:
                file.write(data.numpy().data)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise disk_full(path, self.num_bytes, error) or error from error

    def read(self) -> Tensor:
        return self._tensor(np.fromfile(self.path, dtype=np.uint8), self.shape)

    def read_rows(self, index: list[int]) -> Tensor:
        data = np.empty((len(index), self.row_bytes), dtype=np.uint8)
        with self.path.open('rb', buffering=0) as file:
            for place, row in enumerate(index):
                file.seek(row * self.row_bytes)
                file.readinto(data[place].data)
        return self._tensor(data.reshape(-1), (len(index), *self.shape[1:]))

    def _tensor(
        self, data: npt.NDArray[np.uint8], shape: tuple[int, ...]
    ) -> Tensor:
        flat = torch.from_numpy(data).view(self.dtype)
        return flat.reshape(shape).to(self.device)
