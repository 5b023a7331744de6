"""Recipe of one quantizer: grid, class, observer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from taskptq.core.head_observer import (
    HEAD_AXIS,
    ChannelObserver,
    HeadObserver,
)
from taskptq.core.observers import MinMaxObserver, Observer
from taskptq.core.quantizers import AffineQuantizer, Quantizer
from taskptq.core.settings import (
    Flag,
    Subclass,
    Table,
    check_fields,
    refuse,
    setting,
)
from taskptq.core.spec import QuantSpec


@dataclass(frozen=True, kw_only=True)
class QuantizerConfig:
    """Recipe of one quantizer, buildable any number of times.

    >>> config = QuantizerConfig(spec=QuantSpec(num_bits=4, symmetric=True),
    ...                          per_channel=True)
    >>> config.build(ch_axis=0)
    AffineQuantizer(
      4 bit, symmetric, per channel 0, uncalibrated
      (observer): MinMaxObserver()
    )

    Args:
        spec: Grid; ``build`` sets its ``ch_axis``.
        per_channel: Use one scale per output channel of a weight, per input
            channel of a depthwise convolution, or per head of an attention
            operand.
        quantizer: Class of the quantizer.
        quantizer_kwargs: Its further arguments.
        observer: Class of the observer.
        observer_kwargs: Its further arguments.

    Raises:
        SettingError: If a value has the wrong type.
    """

    spec: QuantSpec = field(default_factory=QuantSpec)
    per_channel: bool = setting(False, Flag())
    quantizer: type[Quantizer] = field(
        default=AffineQuantizer, metadata={'rule': Subclass(base=Quantizer)}
    )
    quantizer_kwargs: Mapping[str, Any] = setting(rule=Table(), factory=dict)
    observer: type[Observer] = field(
        default=MinMaxObserver, metadata={'rule': Subclass(base=Observer)}
    )
    observer_kwargs: Mapping[str, Any] = setting(rule=Table(), factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.spec, QuantSpec):
            raise refuse('spec', self.spec, 'give a QuantSpec')
        check_fields(self)

    def build(
        self,
        *,
        ch_axis: int | None = None,
        num_heads: int | None = None,
        num_channels: int | None = None,
    ) -> Quantizer:
        """Build a quantizer with a fresh observer.

        The arguments count only if ``per_channel``.

        Args:
            ch_axis: Output-channel axis of a weight.
            num_heads: Heads of an operand (B, H, N, C).
            num_channels: Channels of an input (B, C, H, W).
        """
        if not self.per_channel:
            ch_axis = num_heads = num_channels = None
        if num_heads is not None or num_channels is not None:
            ch_axis = HEAD_AXIS
        spec = replace(self.spec, ch_axis=ch_axis)
        observer: Observer
        if num_heads is not None:
            observer = HeadObserver(
                spec, num_heads=num_heads, make=self._make_observer
            )
        elif num_channels is not None and self.observer.one_tensor_per_channel:
            observer = ChannelObserver(
                spec, num_channels=num_channels, make=self._make_observer
            )
        else:
            observer = self._make_observer(spec)
        return self.quantizer(spec, observer=observer, **self.quantizer_kwargs)

    def _make_observer(self, spec: QuantSpec) -> Observer:
        return self.observer(spec, **self.observer_kwargs)

    def with_bits(self, num_bits: int) -> QuantizerConfig:
        """Return the same recipe at another bit width."""
        return replace(self, spec=replace(self.spec, num_bits=num_bits))
