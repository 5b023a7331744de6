"""Layers that read channels, and samples of what they read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskptq.calibration.calibrate import calibration_mode
from taskptq.methods.rewriting.statistics import (
    gather,
    open_attention,
    watch_layer,
)

# Receptive fields kept of one layer, and the most values they may hold.
MAX_ROWS = 1024
MAX_VALUES = 1 << 19
SLOTS = ('query', 'key', 'value')


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A layer that multiplies channels by a weight.

    Args:
        name: Qualified name of the module.
        module: Linear, Conv2d, or nn.MultiheadAttention.
        slot: The argument of an attention that is read: 'query', 'key' or
            'value'; empty for a layer.
    """

    name: str
    module: nn.Module
    slot: str = ''

    @property
    def label(self) -> str:
        """Name, with the argument of an attention after a colon."""
        return f'{self.name}:{self.slot}' if self.slot else self.name

    @property
    def weight(self) -> Tensor:
        """(O, C / groups, ...), sharing the parameter's memory."""
        if not self.slot:
            return cast('Tensor', self.module.weight).detach()
        fused = self.module._parameters['in_proj_weight']
        if fused is None:
            own = getattr(self.module, f'{self.slot[0]}_proj_weight')
            return cast('Tensor', own).detach()
        return fused.detach().chunk(3)[SLOTS.index(self.slot)]

    @property
    def bias(self) -> Tensor | None:
        """(O,), sharing the parameter's memory; None without a bias."""
        if not self.slot:
            bias = cast('Tensor | None', self.module.bias)
            return None if bias is None else bias.detach()
        fused = cast('Tensor | None', self.module.in_proj_bias)
        if fused is None:
            return None
        return fused.detach().chunk(3)[SLOTS.index(self.slot)]

    @property
    def groups(self) -> int:
        """Groups of a convolution, else 1."""
        return int(getattr(self.module, 'groups', 1))

    @property
    def num_channels(self) -> int:
        """Channels that are read."""
        return int(self.weight.shape[1] * self.groups)

    @property
    def pads(self) -> bool:
        """Whether it adds zeros around its input."""
        if not isinstance(self.module, nn.Conv2d):
            return False
        padding = self.module.padding
        return padding != 'valid' and any(cast('tuple[int, ...]', padding))

    def by_column(self, values: Tensor) -> Tensor:
        """Shape values (C,) as factors of the weight's input channels."""
        weight = self.weight
        per_group = values.reshape(self.groups, 1, -1).expand(
            -1, weight.shape[0] // self.groups, -1
        )
        ones = [1] * (weight.dim() - 2)
        return per_group.reshape(*weight.shape[:2], *ones)


@dataclass(kw_only=True)
class InputSample:
    """What a reader read on calibration data.

    Args:
        rows: (P, C, kH, kW), receptive fields of randomly drawn outputs,
            zero padding included; (P, C, 1, 1) for a linear layer.
        min_val: (C,), lowest value of each channel over all data.
        max_val: (C,), highest.
    """

    rows: Tensor
    min_val: Tensor
    max_val: Tensor

    @property
    def peaks(self) -> Tensor:
        """Largest magnitude of each channel, (C,)."""
        return torch.maximum(self.min_val.abs(), self.max_val.abs())


@dataclass(kw_only=True)
class _Collector:
    """Draws receptive fields of one reader, call by call."""

    reader: Reader
    quota: int
    generator: torch.Generator
    low: Tensor | None = None
    high: Tensor | None = None
    rows: list[Tensor] = field(default_factory=list)

    def add(self, x: Tensor) -> None:
        if x.numel() == 0:
            return
        x = x.detach().float()
        axis = 1 if isinstance(self.reader.module, nn.Conv2d) else -1
        if axis == 1 and x.dim() == 3:
            x = x[None]
        channels = x.movedim(axis, 0).flatten(1)
        low, high = (t.cpu() for t in channels.aminmax(dim=1))
        if not bool((low.isfinite() & high.isfinite()).all()):
            raise ValueError(
                f'the input of {self.reader.name} contains NaN or infinity: '
                'check the float model and its input normalization'
            )
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = (
            high if self.high is None else torch.maximum(self.high, high)
        )
        self.rows.append(self._draw(x).cpu())

    def _draw(self, x: Tensor) -> Tensor:
        module = self.reader.module
        if not isinstance(module, nn.Conv2d):
            x = x.reshape(-1, x.shape[-1])
            return x[self._some(len(x))][..., None, None]
        windows = receptive_fields(module, x)  # B x C x H' x W' x kH x kW
        batch, _, height, width = windows.shape[:4]
        chosen = self._some(batch * height * width).to(x.device)
        image = chosen // (height * width)
        row, column = chosen // width % height, chosen % width
        return windows[image, :, row, column]

    def _some(self, number: int) -> Tensor:
        order = torch.randperm(number, generator=self.generator)
        return order[: self.quota].sort().values


def receptive_fields(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """View the receptive field of each output of a convolution.

    Args:
        conv: The convolution.
        x: (B, C, H, W).

    Returns:
        (B, C, H', W', kH, kW), a view of the padded input.
    """
    zeros = conv.padding_mode == 'zeros'
    mode = 'constant' if zeros else conv.padding_mode
    x = F.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
    for axis in (0, 1):
        step = conv.dilation[axis]
        span = step * (conv.kernel_size[axis] - 1) + 1
        x = x.unfold(2 + axis, span, conv.stride[axis])[..., ::step]
    return x


def collect_inputs(
    model: nn.Module, readers: Sequence[Reader], stats: Any
) -> dict[str, InputSample]:
    """Sample what readers read, in one pass over the calibration data.

    In a distributed run every rank ends with the same samples.

    Args:
        model: Float model.
        readers: Its readers.
        stats: See ``CalibrationStats``.

    Returns:
        Samples by label; readers that never ran have none.

    Raises:
        ValueError: If there is no data, or an input is not finite.
    """
    if not stats.batches:
        raise ValueError('calibration set is empty: give at least one batch')
    found: dict[str, _Collector] = {}
    with ExitStack() as stack:
        for number, reader in enumerate(readers):
            quota = -(-max_rows(reader) // len(stats.batches))
            collector = _Collector(
                reader=reader,
                quota=quota,
                generator=torch.Generator().manual_seed(number),
            )
            found[reader.label] = collector
            handle = watch_input(reader, collector.add)
            stack.callback(handle.remove)
        stack.enter_context(calibration_mode(model))
        stack.enter_context(open_attention())
        for batch in stats.batches:
            stats.forward(model, batch)
    return _merged(found)


def max_rows(reader: Reader) -> int:
    """Return how many receptive fields to keep."""
    size = reader.weight[0].numel() * reader.groups
    return max(64, min(MAX_ROWS, MAX_VALUES // size))


def watch_input(reader: Reader, add: Any) -> Any:
    """Pass what a reader reads to ``add`` at every call; return the handle."""
    if not reader.slot:
        return watch_layer(reader.module, add)
    index = SLOTS.index(reader.slot)

    def before(_module: Any, args: Any, kwargs: Any) -> None:
        add(args[index] if index < len(args) else kwargs[reader.slot])

    return reader.module.register_forward_pre_hook(before, with_kwargs=True)


def _merged(found: Mapping[str, _Collector]) -> dict[str, InputSample]:
    own = {
        label: (torch.cat(one.rows), one.low, one.high)
        for label, one in found.items()
        if one.rows
    }
    ranks = gather(own)
    samples = {}
    for label, collector in found.items():
        parts = [rank[label] for rank in ranks if label in rank]
        if not parts:
            continue
        rows = torch.cat([part[0] for part in parts])
        limit = max_rows(collector.reader)
        order = torch.randperm(
            len(rows), generator=torch.Generator().manual_seed(0)
        )
        samples[label] = InputSample(
            rows=rows[order[:limit]],
            min_val=torch.stack([part[1] for part in parts]).amin(dim=0),
            max_val=torch.stack([part[2] for part in parts]).amax(dim=0),
        )
    return samples
