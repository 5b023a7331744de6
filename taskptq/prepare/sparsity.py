"""Settings of ``qconfig.sparsity``: which share of the weights becomes 0."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from taskptq.core.settings import (
    Choice,
    Number,
    Table,
    Text,
    Whole,
    check_fields,
    check_keys,
    patterns,
    refuse,
    setting,
)

ALLOCATIONS = ('learned', 'l2', 'erk', 'uniform')
UNSTRUCTURED = 'unstructured'
PATTERN = re.compile(r'([1-9]\d?):([1-9]\d?)', re.ASCII)
NAME = 'qconfig.sparsity'


@dataclass(frozen=True, kw_only=True)
class SparsityConfig:
    """Which share of the weights becomes 0, and where.

    Prunable are the weights with a quantizer, without the first convolution,
    the heads' last layers and depthwise convolutions.

    Args:
        rate: Share of all prunable weights that becomes 0, met exactly; None
            with an N:M ``pattern``, which has its own.
        pattern: 'unstructured', or 'N:M' (e.g. '2:4'): at most N of M
            neighbouring input channels remain, in each layer whose number of
            input channels is a multiple of M; others stay dense.
        allocation: How the rate is shared out. 'uniform': each layer alike;
            'erk': by the shapes of the layers; 'l2': by one threshold on
            ``|w| / ||W||``; 'learned': by thresholds that are learned with
            the weights, from 'l2' on, on the outputs of the whole model.
        keep_dense: Name patterns of layers that stay dense.
        steps: Optimizer steps of 'learned'.
        batch_size: Images per minibatch of 'learned'.
        weight_lr: Adam's learning rate of the weights there, in steps of an
            8-bit grid of their channel.
        threshold_lr: Adam's learning rate of the logarithms of thresholds.

    Raises:
        SettingError: If a value is invalid.
    """

    rate: float | None = setting(None, Number(low=0, below=1, optional=True))
    pattern: str = setting(UNSTRUCTURED, Text(what="'unstructured' or 'N:M'"))
    allocation: str = setting('l2', Choice(choices=ALLOCATIONS))
    keep_dense: tuple[str, ...] = setting((), patterns())
    steps: int = setting(100, Whole(low=1, high=1_000_000))
    batch_size: int = setting(4, Whole(low=1, high=1 << 16))
    weight_lr: float = setting(0.1, Number(low=0, high=100))
    threshold_lr: float = setting(0.02, Number(low=0, high=10))

    def __post_init__(self) -> None:
        check_fields(self, name=NAME)
        if self.pattern == UNSTRUCTURED:
            if self.rate is None:
                raise refuse(f'{NAME}.rate', None, 'give a share such as 0.7')
            return
        kept_of = self.kept_of
        if kept_of is None or not kept_of[0] < kept_of[1]:
            raise refuse(
                f'{NAME}.pattern',
                self.pattern,
                "give 'unstructured', or how many of how many remain, as in "
                "'2:4'",
            )
        if self.rate is not None:
            raise refuse(
                f'{NAME}.rate',
                self.rate,
                f'remove it: the pattern {self.pattern} has its own',
            )

    @property
    def kept_of(self) -> tuple[int, int] | None:
        """N and M of an N:M pattern; None for unstructured ones."""
        found = PATTERN.fullmatch(self.pattern)
        return None if found is None else (int(found[1]), int(found[2]))

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> SparsityConfig:
        """Read the plain form.

        Raises:
            SettingError: If a key is unknown or a value is invalid.
        """
        check_keys(config, [known.name for known in fields(cls)], name=NAME)
        return cls(**config)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        return {**asdict(self), 'keep_dense': list(self.keep_dense)}


def read_sparsity(config: Any) -> SparsityConfig | None:
    """Read ``qconfig.sparsity``; None stays None.

    Raises:
        SettingError: If it is neither a dict nor None, or a key is invalid.
    """
    settings = Table(optional=True).read(config, name=NAME)
    return None if settings is None else SparsityConfig.from_dict(settings)


def plain_sparsity(config: SparsityConfig | None) -> dict[str, Any]:
    """Return the entry of a plain qconfig; none without sparsity."""
    return {} if config is None else {'sparsity': config.to_dict()}
