"""Statistics of attention projections and outputs on calibration data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from taskptq.calibration.calibrate import Forward, calibration_mode
from taskptq.methods.rewriting.density_peaks import (
    DensityPeaks,
    find_density_peaks,
)
from taskptq.methods.rewriting.views import PARTS, AttentionView, Projection

# Most values kept of one tensor. A density of 128 points from that many takes
# a third of a second, and its noise is about 2 % of its height.
MAX_SAMPLE = 2**17

# Not a projection: the heads' outputs, the input of the output projection.
ATTENDED = 'attended'


@dataclass(kw_only=True)
class ChannelStatistics:
    """Ranges and means of the channels of one projection.

    Args:
        min_val: (C,), lowest value of each channel.
        max_val: (C,), highest value of each channel.
        total: (C,), sum of the values, float64.
        num_tokens: Number of values per channel.
        sample: (R, C), tokens of the first call: all of them or, beyond
            ``MAX_SAMPLE`` values, a fixed random sample.
    """

    min_val: Tensor
    max_val: Tensor
    total: Tensor
    num_tokens: int
    sample: Tensor

    @classmethod
    def of(cls, x: Tensor) -> ChannelStatistics:
        """Describe a tensor (..., C).

        Raises:
            ValueError: If it is not finite.
        """
        x = x.detach().flatten(0, -2).float()
        if not bool(x.isfinite().all()):
            raise ValueError(
                'activation contains NaN or infinity: check the float model '
                'and its input normalisation'
            )
        return cls(
            min_val=x.amin(dim=0).cpu(),
            max_val=x.amax(dim=0).cpu(),
            total=x.sum(dim=0, dtype=torch.float64).cpu(),
            num_tokens=x.shape[0],
            sample=_some_tokens(x).cpu(),
        )

    @property
    def mean(self) -> Tensor:
        """Mean of each channel, (C,), float64."""
        return self.total / self.num_tokens

    @property
    def midrange(self) -> Tensor:
        """Midpoint of lowest and highest value, (C,), float64."""
        return (self.min_val.double() + self.max_val.double()) / 2

    @property
    def num_values(self) -> int:
        """Number of values over all channels."""
        return self.num_tokens * self.total.numel()

    def merge(self, other: ChannelStatistics) -> ChannelStatistics:
        """Return the joint statistics, with this one's sample."""
        return ChannelStatistics(
            min_val=torch.minimum(self.min_val, other.min_val),
            max_val=torch.maximum(self.max_val, other.max_val),
            total=self.total + other.total,
            num_tokens=self.num_tokens + other.num_tokens,
            sample=self.sample,
        )

    def peaks(self) -> DensityPeaks:
        """Find the peaks of all channels together."""
        return find_density_peaks(
            self.sample,
            low=float(self.min_val.min()),
            high=float(self.max_val.max()),
            num_values=self.num_values,
        )


def _some_tokens(x: Tensor) -> Tensor:
    """Sample whole tokens, so that each channel has the same weight."""
    limit = max(MAX_SAMPLE // x.shape[1], 1)
    if x.shape[0] <= limit:
        return x
    # Not every k-th token: on an image that may be one column.
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(x.shape[0], generator=generator)[:limit]
    return x[chosen.sort().values.to(x.device)]


@dataclass(kw_only=True)
class _Collector:
    """Statistics of one projection, batch by batch."""

    one_batch: bool
    statistics: ChannelStatistics | None = None
    batch: int = -1
    current: list[int] = field(default_factory=lambda: [0])

    def add(self, x: Tensor) -> None:
        if x.numel() == 0:
            return
        if self.statistics is None:
            self.statistics = ChannelStatistics.of(x)
            self.batch = self.current[0]
        elif not self.one_batch or self.batch == self.current[0]:
            self.statistics = self.statistics.merge(ChannelStatistics.of(x))


@contextmanager
def open_attention() -> Iterator[None]:
    """Keep torch off its fused kernels, which bypass hooks and modules."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def collect_statistics(
    model: nn.Module,
    views: Sequence[AttentionView],
    batches: Sequence[Any],
    *,
    forward: Forward,
    parts: Sequence[str] = PARTS,
    one_batch: bool = False,
) -> dict[str, dict[str, ChannelStatistics]]:
    """Describe projected queries, keys and values, in one pass over the data.

    In a distributed run every rank ends with the statistics of all batches
    and the sample of the lowest rank.

    Args:
        model: Float model.
        views: Its attentions.
        batches: Collated batches (this rank's share).
        forward: Runs the model on one batch.
        parts: Any of 'query', 'key', 'key_position', 'value', and
            'attended', the concatenated outputs of the heads: each query's
            mean of the values, weighted by its attention. Parts that an
            attention lacks are left out.
        one_batch: Use only the first batch (of the lowest rank) in which an
            attention runs, and stop when each has run.

    Returns:
        Statistics by attention and part; without attentions that never ran.

    Raises:
        ValueError: If there is no batch, or a projection is not finite.
    """
    if not batches:
        raise ValueError('calibration set is empty: give at least one batch')
    current = [0]
    collectors = {}
    with ExitStack() as stack:
        for view in views:
            for part in parts:
                projection = view.out if part == ATTENDED else view.part(part)
                if projection is None:
                    continue
                collector = _Collector(one_batch=one_batch, current=current)
                collectors[view.name, part] = collector
                add = _named(collector.add, view, part)
                if part == ATTENDED:
                    handle = _attach_attended(view, add)
                else:
                    handle = _attach(view, part, projection, add)
                stack.callback(handle.remove)
        stack.enter_context(calibration_mode(model))
        stack.enter_context(open_attention())
        for index, batch in enumerate(batches):
            current[0] = index
            forward(model, batch)
            if one_batch and all(c.statistics for c in collectors.values()):
                break
    return _merged(
        {key: c.statistics for key, c in collectors.items()},
        first_only=one_batch,
    )


def _named(
    add: Callable[[Tensor], None], view: AttentionView, part: str
) -> Callable[[Tensor], None]:
    """Make errors of ``add`` name the attention."""

    def named_add(x: Tensor) -> None:
        try:
            add(x)
        except ValueError as error:
            raise ValueError(f'{view.name} ({part}): {error}') from error

    return named_add


def _attach(
    view: AttentionView,
    part: str,
    projection: Projection,
    add: Callable[[Tensor], None],
) -> Any:
    """Pass a projection's output to ``add`` at every call."""
    if projection.layer is not None:

        def after_layer(_module: Any, _args: Any, output: Tensor) -> None:
            add(output[..., projection.rows])

        return projection.layer.register_forward_hook(after_layer)

    def before_attention(_module: Any, args: Any, kwargs: Any) -> None:
        index = PARTS.index(part)
        x = args[index] if index < len(args) else kwargs[part]
        add(F.linear(x, projection.weight, projection.bias))

    return view.module.register_forward_pre_hook(
        before_attention, with_kwargs=True
    )


def watch_layer(layer: nn.Module, add: Callable[[Tensor], None]) -> Any:
    """Pass what a layer reads to ``add`` at every call; return the handle.

    Args:
        layer: Layer of one input, which hosts may pass by its name.
        add: Takes the input.
    """

    def before(_module: Any, args: Any, kwargs: Any) -> None:
        add(next(iter((*args, *kwargs.values()))))

    return layer.register_forward_pre_hook(before, with_kwargs=True)


def _attach_attended(
    view: AttentionView, add: Callable[[Tensor], None]
) -> Any:
    """Pass the heads' outputs to ``add`` at every call."""
    if isinstance(view.module, nn.MultiheadAttention):
        # Its output projection is a parameter of one fused call, so attend
        # again without that projection to see its input.
        weight, bias = view.out.weight, view.out.bias
        bare = {'out_proj.weight': torch.eye(len(weight)).to(weight)}
        if bias is not None:
            bare['out_proj.bias'] = torch.zeros_like(bias)
        repeating = [False]

        def after_attention(
            module: Any, args: Any, kwargs: Any, _output: Any
        ) -> None:
            if repeating[0]:
                return
            repeating[0] = True
            try:
                add(functional_call(module, bare, args, kwargs)[0])
            finally:
                repeating[0] = False

        return view.module.register_forward_hook(
            after_attention, with_kwargs=True
        )

    assert view.out.layer is not None
    return watch_layer(view.out.layer, add)


def _merged(
    own: dict[tuple[str, str], ChannelStatistics | None], *, first_only: bool
) -> dict[str, dict[str, ChannelStatistics]]:
    """Merge the statistics of all ranks, grouped by attention."""
    result: dict[str, dict[str, ChannelStatistics]] = {}
    for ranks in gather(own):
        for (name, part), statistics in ranks.items():
            if statistics is None:
                continue
            known = result.setdefault(name, {})
            if part not in known:
                known[part] = statistics
            elif not first_only:
                known[part] = known[part].merge(statistics)
    return result


def gather(own: Any) -> list[Any]:
    """Return every rank's value, in the order of the ranks."""
    if not (dist.is_available() and dist.is_initialized()):
        return [own]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, own)
    return everyone
