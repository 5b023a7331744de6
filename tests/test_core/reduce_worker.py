"""One rank of test_reduce.py: observes its shard, reduces, saves."""

import os
import sys
from pathlib import Path
from typing import ClassVar

import torch
import torch.distributed as dist

from taskptq.core import (
    HistogramObserver,
    KLObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MSEObserver,
    Observer,
    PercentileObserver,
    QuantSpec,
)
from taskptq.core.reduce import reduce_observers
from taskptq.methods.ptq4sam.output_error import AttentionOutputObserver

NUM_BATCHES = 7
WORLD_SIZE = 2
ROOM = 4000


class SumObserver(Observer):
    """Counts and sums, to cover the 'sum' reduction of both types."""

    reductions: ClassVar[dict[str, str]] = {
        **Observer.reductions,
        'seen': 'sum',
        'total': 'sum',
    }

    def __init__(self, spec):
        super().__init__(spec)
        self.register_buffer('seen', torch.zeros(1, dtype=torch.int64))
        self.register_buffer('total', torch.zeros(2))

    def update(self, rows, low, high):
        self._extend(low, high)
        self.seen += rows.numel()
        self.total += torch.stack([rows.sum(), rows.square().sum()])


def make_observers():
    spec, channels = QuantSpec(num_bits=4), QuantSpec(num_bits=4, ch_axis=1)
    return [
        MinMaxObserver(spec),
        MinMaxObserver(channels),
        HistogramObserver(spec),
        MSEObserver(spec, num_bins=256),
        KLObserver(spec),
        PercentileObserver(spec, num_bins=64),
        MovingAverageMinMaxObserver(spec),
        MovingAverageMinMaxObserver(channels),
        SumObserver(spec),
        # These two see something on one rank only, the last nowhere.
        HistogramObserver(spec),
        MinMaxObserver(channels),
        MSEObserver(spec),
        # Pairs of attention and value: on all ranks, on one, of little room.
        AttentionOutputObserver(spec, per_head=True),
        AttentionOutputObserver(spec),
        AttentionOutputObserver(spec, max_elements=ROOM),
    ]


def batch(index):
    generator = torch.Generator().manual_seed(index)
    x = torch.randn(4, 3, 20, generator=generator)
    return x * 5.0 ** (index % 3) + index


def show(observer, index):
    """Keys differ in number from batch to batch."""
    generator = torch.Generator().manual_seed(index)
    shape = (2, 3, 4, 5 + index)
    logits = torch.randn(shape, generator=generator)
    value = torch.randn(2, 3, shape[-1], 2, generator=generator)
    observer.expect_value(value)
    observer.observe(logits.softmax(dim=-1))


def observe(observers, indices, *, rank):
    for index in indices:
        show(observers[12], index)
        for more in range(10):
            show(observers[14], index + more)
        for observer in observers[:9]:
            observer.observe(batch(index))
    if rank in (None, 1):
        for observer in observers[9:11]:
            observer.observe(batch(100))
        show(observers[13], 3)


def state_of(observers):
    states = []
    for observer in observers:
        state = {name: getattr(observer, name) for name in observer.reductions}
        state['num_batches'] = observer.num_batches
        if isinstance(observer, HistogramObserver):
            state |= {
                'exponent': observer.exponent,
                'first': observer.first_bin,
            }
        if isinstance(observer, AttentionOutputObserver):
            state['search'] = str(observer.search().to_dict())
        elif observer.observed:
            state['range'] = list(observer.compute_range())
        states.append(state)
    return states


def counting(function, calls):
    def counted(*args, **kwargs):
        calls.append(function.__name__)
        return function(*args, **kwargs)

    return counted


def main(folder, rank):
    store = dist.FileStore(str(folder / 'store'), WORLD_SIZE)
    dist.init_process_group(
        'gloo', store=store, rank=rank, world_size=WORLD_SIZE
    )
    observers = make_observers()
    observe(observers, range(rank, NUM_BATCHES, WORLD_SIZE), rank=rank)
    collectives = []
    for name in ('all_reduce', 'all_gather'):
        setattr(dist, name, counting(getattr(dist, name), collectives))
    reduce_observers(observers)
    torch.save(
        {'states': state_of(observers), 'collectives': len(collectives)},
        folder / f'{rank}.pt',
    )
    dist.barrier()
    mismatch = MinMaxObserver(QuantSpec(ch_axis=0))
    mismatch.observe(torch.ones(2 + rank, 3))
    try:
        reduce_observers([mismatch])
    except ValueError as error:
        (folder / f'{rank}.txt').write_text(str(error))
    dist.destroy_process_group()


if __name__ == '__main__':
    main(Path(sys.argv[1]), int(os.environ['RANK']))
