"""Cross-rank reduction of observers, as each declares it.

All observers of a model share a handful of collectives; only gathered
samples, which are large, are sent one by one. A rank whose observer saw
nothing contributes neutral values.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from taskptq.core.observers import HistogramObserver, Observer

KINDS = ('min', 'max', 'mean', 'sum', 'histogram', 'gather')
# Their buffers may differ in size between ranks.
SIZED_BY_RANK = ('histogram', 'gather')


class _Entry(NamedTuple):
    """One declared buffer of one observer, and its size on each rank."""

    observer: Observer
    name: str
    kind: str
    sizes: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Return the largest size on any rank."""
        return max(self.sizes)

    def values(self, *, neutral: float, dtype: torch.dtype) -> Tensor:
        """Return the buffer, flat, or neutral values if nothing was seen."""
        buffer: Tensor = getattr(self.observer, self.name)
        if buffer.numel() == 0:
            return buffer.new_full((self.numel,), neutral, dtype=dtype)
        return buffer.reshape(-1).to(dtype)

    def store(self, values: Tensor) -> None:
        """Set the buffer, keeping its dtype and device."""
        buffer: Tensor = getattr(self.observer, self.name)
        shape = buffer.shape if buffer.numel() else (self.numel,)
        values = values.to(device=buffer.device, dtype=buffer.dtype)
        setattr(self.observer, self.name, values.reshape(shape))


def reduce_observers(observers: Sequence[Observer]) -> None:
    """Give the observers of all ranks one common state.

    'min', 'max', 'histogram' and integer 'sum' equal the result of one
    process that saw everything; 'mean' weights by batches seen. Does nothing
    outside distributed runs.

    Args:
        observers: Observers, in the same order on every rank.

    Raises:
        ValueError: If an observer declares an unknown reduction, or saw
            tensors of different channel counts on different ranks.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    observers = [part for whole in observers for part in whole.parts()]
    if dist.get_world_size() == 1 or not observers:
        return
    for observer in observers:
        observer.share_budget(dist.get_world_size())
    device = _device()
    entries, batches = _agree(observers, device)
    _reduce_ends(entries, device)
    _reduce_sums(entries, device)
    _reduce_histograms(entries, device)
    for entry in _pick(entries, 'gather'):
        _gather(entry, device)
    for observer, total in zip(observers, batches, strict=True):
        observer.num_batches = total


def _device() -> torch.device:
    """Return the device on which the backend expects tensors."""
    if dist.get_backend() == 'nccl':
        return torch.device('cuda', torch.cuda.current_device())
    return torch.device('cpu')


def _declared(
    observers: Iterable[Observer],
) -> list[tuple[Observer, str, str]]:
    declared = []
    for observer in observers:
        for name, kind in observer.reductions.items():
            if kind not in KINDS:
                raise ValueError(
                    f'{type(observer).__name__}.reductions[{name!r}] is '
                    f'{kind!r}: choose one of {KINDS}'
                )
            declared.append((observer, name, kind))
    return declared


def _agree(
    observers: Sequence[Observer], device: torch.device
) -> tuple[list[_Entry], list[int]]:
    """Exchange batch counts and sizes, so that all ranks pack equally."""
    declared = _declared(observers)
    sizes = [getattr(observer, name).numel() for observer, name, _ in declared]
    batches = [observer.num_batches for observer in observers]
    own = torch.tensor(batches + sizes, dtype=torch.int64, device=device)
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, own)
    table = torch.stack(everyone).cpu()
    entries = []
    for i, (observer, name, kind) in enumerate(declared):
        sizes_of = table[:, len(batches) + i]
        seen = sizes_of[sizes_of > 0].unique()
        if seen.numel() > 1 and kind not in SIZED_BY_RANK:
            raise ValueError(
                f'{type(observer).__name__}.{name} has the sizes '
                f'{seen.tolist()} on different ranks: every rank must '
                'calibrate the same model'
            )
        if seen.numel():
            sizes_by_rank = tuple(sizes_of.tolist())
            entries.append(_Entry(observer, name, kind, sizes_by_rank))
    return entries, table[:, : len(batches)].sum(dim=0).tolist()


def _pick(entries: list[_Entry], *kinds: str) -> list[_Entry]:
    return [entry for entry in entries if entry.kind in kinds]


def _all_reduce(
    parts: list[Tensor], op: dist.ReduceOp.RedOpType, device: torch.device
) -> list[Tensor]:
    """Reduce many small tensors of one dtype in one collective."""
    if not parts:
        return []
    flat = torch.cat([part.reshape(-1).to(device) for part in parts])
    dist.all_reduce(flat, op=op)
    return list(flat.split([part.numel() for part in parts]))


def _reduce_ends(entries: list[_Entry], device: torch.device) -> None:
    """Reduce 'min' and 'max' in one collective: min x = -max -x."""
    chosen = _pick(entries, 'min', 'max')
    signs = [-1 if entry.kind == 'min' else 1 for entry in chosen]
    parts = [
        sign * entry.values(neutral=-sign * torch.inf, dtype=torch.float64)
        for entry, sign in zip(chosen, signs, strict=True)
    ]
    reduced = _all_reduce(parts, dist.ReduceOp.MAX, device)
    for entry, sign, values in zip(chosen, signs, reduced, strict=True):
        entry.store(sign * values)


def _reduce_sums(entries: list[_Entry], device: torch.device) -> None:
    """Reduce 'sum' and 'mean', one collective per integers and floats."""
    for floating in (False, True):
        dtype = torch.float64 if floating else torch.int64
        chosen = [
            entry
            for entry in _pick(entries, 'sum', 'mean')
            if floating == _is_floating(entry)
        ]
        parts = []
        for entry in chosen:
            weight = entry.observer.num_batches if entry.kind == 'mean' else 1
            values = entry.values(neutral=0, dtype=dtype) * weight
            parts += [values, values.new_full((1,), weight)]
        reduced = _all_reduce(parts, dist.ReduceOp.SUM, device)
        for i, entry in enumerate(chosen):
            values, weight_sum = reduced[2 * i], reduced[2 * i + 1]
            entry.store(
                values / weight_sum if entry.kind == 'mean' else values
            )


def _is_floating(entry: _Entry) -> bool:
    buffer: Tensor = getattr(entry.observer, entry.name)
    return buffer.is_floating_point() or entry.kind == 'mean'


def _reduce_histograms(entries: list[_Entry], device: torch.device) -> None:
    """Sum counts after giving all ranks the same bin width and range."""
    chosen = _pick(entries, 'histogram')
    for entry in chosen:
        observer = entry.observer
        assert isinstance(observer, HistogramObserver)
        # The range is common already, so the exponent is too.
        observer.rebin(observer.needed_exponent())
    parts: list[Tensor] = [getattr(e.observer, e.name) for e in chosen]
    reduced = _all_reduce(parts, dist.ReduceOp.SUM, device)
    for entry, values in zip(chosen, reduced, strict=True):
        entry.store(values)


def _gather(entry: _Entry, device: torch.device) -> None:
    """Concatenate the buffers of all ranks, in rank order."""
    buffer: Tensor = getattr(entry.observer, entry.name)
    padded = buffer.new_zeros(entry.numel, device=device)
    padded[: buffer.numel()] = buffer.to(device)
    everyone = [torch.empty_like(padded) for _ in entry.sizes]
    dist.all_gather(everyone, padded)
    parts = [
        part[:size] for part, size in zip(everyone, entry.sizes, strict=True)
    ]
    gathered = torch.cat(parts).to(buffer.device)
    setattr(entry.observer, entry.name, gathered)
