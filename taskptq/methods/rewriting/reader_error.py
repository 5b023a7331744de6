"""The output error of a quantized layer, with its input's channels moved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.core import MSEObserver, QuantizerConfig, QuantSpec
from taskptq.core.observers import HistogramObserver
from taskptq.methods.rewriting.readers import InputSample, Reader
from taskptq.modules.base import Scheme
from taskptq.modules.conv import is_depthwise
from taskptq.prepare.qconfig import QConfig
from taskptq.prepare.swap import plan_swap

# Output channels that the error is measured on, drawn evenly.
MAX_OUTPUTS = 64
# Ranges that are tried for each candidate; the recipe's search is finer.
NUM_CANDIDATES = 25
DEFAULT = Scheme(
    weight=QuantizerConfig(spec=QuantSpec(symmetric=True), per_channel=True),
    activation=QuantizerConfig(),
)


def layer_schemes(
    model: nn.Module, stats: Any
) -> Callable[[str], Scheme | None]:
    """Return the function layer -> quantizer recipes, None if it stays float.

    Args:
        model: Float model.
        stats: Calibration data; its ``qconfig``, if it has one, decides.
            Without one, weights and inputs have 8 bits.

    Raises:
        ValueError: If the qconfig does not fit the model.
    """
    qconfig: QConfig | None = getattr(stats, 'qconfig', None)
    if qconfig is None:
        return lambda name: DEFAULT
    found: Mapping[str, Scheme] = {
        plan.name: plan.scheme
        for plan in plan_swap(model, qconfig)
        if plan.cls is not None
    }
    return found.get


@dataclass(kw_only=True)
class ReaderError:
    """Relative output error of a quantized reader.

    Args:
        reader: The reader.
        sample: What it reads.
        scheme: Recipes of its quantizers.
        gains: (O,), factor of each output channel in what follows, e.g. that
            of a BatchNorm; None is 1.
    """

    reader: Reader
    sample: InputSample
    scheme: Scheme
    gains: Tensor | None = None

    @cached_property
    def per_channel_input(self) -> bool:
        """Whether each input channel has its own scale anyway."""
        config = self.scheme.activation
        return bool(
            config is not None
            and config.per_channel
            and is_depthwise(self.reader.module)
        )

    @cached_property
    def _weight(self) -> Tensor:
        """(O', C / groups, kH, kW) float64, some of the output channels."""
        weight = self.reader.weight.detach().cpu().double()
        return weight.reshape(*weight.shape[:2], *self._kernel)

    @property
    def _kernel(self) -> tuple[int, int]:
        height, width = self.sample.rows.shape[2:]
        return int(height), int(width)

    @cached_property
    def _chosen(self) -> Tensor:
        """Indices of the outputs that count; all where channels have groups.

        Grouped layers are small.
        """
        outputs = self._weight.shape[0]
        if self.reader.groups > 1 or outputs <= MAX_OUTPUTS:
            return torch.arange(outputs)
        return torch.linspace(0, outputs - 1, MAX_OUTPUTS).round().long()

    @cached_property
    def _output(self) -> Tensor:
        """(P, O') float64, outputs of the float layer without its bias."""
        return self._product(
            self.sample.rows.double(), self._weight[self._chosen]
        )

    def split_error(self, counts: Tensor) -> float:
        """Return E|y_hat - y|^2 / E|y|^2 with channels in equal parts.

        Args:
            counts: (C,), copies of each channel; the weight's columns are
                repeated, so that its grid stays.
        """
        counts = counts.detach().cpu().double()
        rows = (self.sample.rows.double() / counts[:, None, None]).float()
        x_hat = self._quantized_input(rows, counts, None).double()
        w_hat = fake(
            self.scheme.weight,
            self._weight[self._chosen].float(),
            ch_axis=0,
        ).double()
        y_hat = self._product(x_hat * counts[:, None, None], w_hat)
        return self._relative(y_hat - self._output)

    def error(self, scales: Tensor, shift: Tensor | None = None) -> float:
        """Return E|y_hat - y|^2 / E|y|^2 with inputs (x - shift) / scales.

        Args:
            scales: (C,), divisors of the input channels; 1 is the layer as it
                is.
            shift: (C,), subtracted first; None is 0. Only where no zero
                padding is read.
        """
        scales = scales.detach().cpu().double()
        rows = self.sample.rows.double()
        spread = scales[:, None, None]
        offset: Tensor | float = 0.0
        if shift is not None:
            shift = shift.detach().cpu().double()
            offset = self._product(
                shift[None, :, None, None].expand(1, -1, *self._kernel),
                self._weight[self._chosen],
            )
            rows = rows - shift[:, None, None]
        rows = (rows / spread).float()
        factors = self.reader.by_column(scales).reshape(
            *self._weight.shape[:2], 1, 1
        )
        weight = (self._weight * factors).float()[self._chosen]
        x_hat = self._quantized_input(rows, scales, shift).double()
        w_hat = fake(self.scheme.weight, weight, ch_axis=0).double()
        change = self._product(x_hat, w_hat) + offset - self._output
        return self._relative(change)

    def _relative(self, change: Tensor) -> float:
        y = self._output
        power = 1.0 if self.gains is None else self.gains[self._chosen] ** 2
        total = float((y.square().mean(dim=0) * power).sum())
        error = float((change.square().mean(dim=0) * power).sum())
        return error / total if total > 0 else 0.0

    def _product(self, rows: Tensor, weight: Tensor) -> Tensor:
        """Multiply (P, C, kH, kW) by (O, C / groups, kH, kW) to (P, O)."""
        groups = self.reader.groups
        by_group = rows.reshape(len(rows), groups, -1)
        weight = weight.reshape(groups, weight.shape[0] // groups, -1)
        return torch.einsum('pgi,goi->pgo', by_group, weight).flatten(1)

    def _quantized_input(
        self, rows: Tensor, scales: Tensor, shift: Tensor | None
    ) -> Tensor:
        ends = torch.stack([self.sample.min_val, self.sample.max_val])
        ends = ends.double() if shift is None else ends.double() - shift
        ends = (ends / scales).float()[..., None, None]
        num_channels = rows.shape[1] if self.per_channel_input else None
        return fake(
            self.scheme.activation,
            rows,
            num_channels=num_channels,
            ends=ends.expand(-1, -1, *self._kernel),
        )


def fake(
    config: QuantizerConfig | None,
    x: Tensor,
    *,
    ch_axis: int | None = None,
    num_channels: int | None = None,
    num_heads: int | None = None,
    ends: Tensor | None = None,
) -> Tensor:
    """Return a tensor on the grid that its recipe finds for it.

    Args:
        config: Recipe; None leaves the tensor as it is.
        x: The tensor.
        ch_axis: Output-channel axis of a weight.
        num_channels: Channels of the input of a depthwise convolution.
        num_heads: Heads of an attention's operand (B, H, N, C).
        ends: Extreme values that ``x``, a sample, may lack, in its shape but
            for the first axis. Searched ranges do without them, as they are
            far rarer in the data than they would be in the sample.
    """
    if config is None:
        return x
    if issubclass(config.observer, MSEObserver):
        few = {**config.observer_kwargs, 'num_candidates': NUM_CANDIDATES}
        config = replace(config, observer_kwargs=few)
    quantizer = config.build(
        ch_axis=ch_axis, num_channels=num_channels, num_heads=num_heads
    )
    assert quantizer.observer is not None
    seen = x
    if ends is not None and not issubclass(config.observer, HistogramObserver):
        seen = torch.cat([x, ends])
    quantizer.observer.observe(seen)
    quantizer.calibrate()
    quantizer.enabled = True
    x_hat: Tensor = quantizer(x)
    return x_hat.detach()
