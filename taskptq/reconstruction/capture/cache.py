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

# Rows of smaller tensors (in elements) are not compared.
SMALL = 1 << 14


def cache_of(
    config: ReconstructionConfig, *, directory: Path | None = None
) -> ActivationCache:
    """Make an empty cache with the budgets of the settings.

    Also removes files that killed runs left in its folder.

    Args:
        config: Settings.
        directory: Folder for spilled files, instead of ``cache_dir``.
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

    If all rows of a tensor are equal, only one is stored: image features and
    their positions are repeated for each prompt of an image.

    Files are read row by row with ordinary reads: a memory map would count
    as resident memory, which the budget limits.

    Images are stored channels last, on which convolutions run faster;
    ``plain=True`` returns them in plain memory.

    Args:
        max_bytes: Budget of the tensors held in memory.
        directory: Parent of the folder for spilled files, which is made on
            the first spill; None is the temporary folder. ``close`` removes
            the folder; if this run is killed, the next one does.
        max_disk_bytes: Budget of the tensors on disk; None is unlimited.
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
        self.spilled_bytes = 0  # in total, including deleted tensors
        self._held: dict[Hashable, Tensor] = {}
        self._files: dict[Hashable, _File] = {}
        self._repeats: dict[Hashable, int] = {}  # number of equal rows
        self.directory = None if directory is None else Path(directory)
        self._folder: Path | None = None
        self._counter = 0

    def reserve(self, needed: Estimate) -> None:
        """Check that there is room on disk.

        Args:
            needed: Sizes to be stored.

        Raises:
            ValueError: If they don't fit; on every rank.
        """
        check_room(needed, folder=self.directory, budget=self.max_disk_bytes)

    def put(self, key: Hashable, tensor: Tensor) -> None:
        """Store a copy of a tensor, replacing any older one.

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
                f'reconstruction.cache_disk_bytes={limit} is used up and an '
                f'activation of {size:,} bytes does not fit: raise it or '
                'reconstruction.cache_bytes, or use fewer images'
            )

    def get(self, key: Hashable, *, plain: bool = False) -> Tensor:
        """Return the whole stored tensor; do not write to it.

        Args:
            key: Key of the tensor.
            plain: Return images in plain memory, not channels last.
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
        """Return rows (along axis 0), in the given order.

        Args:
            key: Key of the tensor.
            index: Numbers of the rows.
            plain: Return images in plain memory, not channels last.
        """
        if key in self._repeats:
            index = [0] * len(index)
        if key in self._held:
            held = self._held[key]
            wanted = torch.tensor(index, device=held.device)
            rows = _from_layout(held.index_select(0, wanted))
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
        """Return the tensor's dtype, without reading it."""
        held = self._held.get(key)
        return self._files[key].dtype if held is None else held.dtype

    def delete(self, key: Hashable) -> None:
        """Delete one tensor if it is stored."""
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
        """Delete all tensors and files."""
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
    """Return how many bytes a cache needs for a tensor."""
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
    """B x C x H x W -> B x H x W x C, on which convolutions run faster."""
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
