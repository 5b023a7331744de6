"""Sensitivity Aware Selection: which heads count, and how much.

After Fan et al., AAAI 2024, who select influential heads and refine the
objective at run time; thresholds and weights are a reconstruction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from taskptq.core.settings import (
    Choice,
    Number,
    Whole,
    check_fields,
    setting,
)

SELECTIONS = ('threshold', 'topk')


@dataclass(frozen=True, kw_only=True)
class HeadSelection:
    """From sensitivities to the weights of the heads.

    Args:
        selection: 'threshold' keeps heads of at least ``rho`` times the
            highest sensitivity, 'topk' the ``top_k`` highest, None keeps all
            and weighs them alike.
        rho: Share of the highest sensitivity, [0, 1].
        top_k: Heads kept, at least 1.
        floor: Share of the weight that all heads get alike, selected or not,
            [0, 1].

    Raises:
        ValueError: If a value cannot be.
    """

    selection: str | None = setting(
        'threshold', Choice(choices=SELECTIONS, optional=True)
    )
    rho: float = setting(0.05, Number(low=0, high=1))
    top_k: int = setting(2, Whole(low=1))
    floor: float = setting(0.0, Number(low=0, high=1))

    def __post_init__(self) -> None:
        """Check the settings."""
        check_fields(self)

    def kept(self, sensitivities: Mapping[str, float]) -> list[str]:
        """Return the names of the selected heads, in their order."""
        names = list(sensitivities)
        highest = max(sensitivities.values(), default=0.0)
        # Where nothing hurts there is nothing to select by.
        if self.selection is None or highest <= 0:
            return names
        if self.selection == 'threshold':
            least = self.rho * highest
        else:
            ranked = sorted(sensitivities.values(), reverse=True)
            least = ranked[min(self.top_k, len(ranked)) - 1]
        kept = [n for n in names if sensitivities[n] >= least]
        if self.selection == 'topk':
            # Of equal heads, the first ones.
            kept.sort(key=lambda name: -sensitivities[name])
            kept = sorted(kept[: self.top_k], key=names.index)
        return kept

    def weights(self, sensitivities: Mapping[str, float]) -> dict[str, float]:
        """Return the weight of every head; they sum to 1.

        A kept head weighs ``S_i / sum S`` over the kept ones; all weigh the
        same without a selection, or where every sensitivity is 0.
        """
        kept = self.kept(sensitivities)
        total = sum(sensitivities[name] for name in kept)
        alike = self.selection is None or total <= 0
        even = 1 / max(1, len(sensitivities))
        weights = {}
        for name, value in sensitivities.items():
            share = even if alike else value / total * (name in kept)
            weights[name] = (1 - self.floor) * share + self.floor * even
        return weights


class MovingAverage:
    """Exponential moving average of named values; starts at the first.

    Args:
        decay: Weight of what was before, [0, 1).

    Raises:
        ValueError: If the decay cannot be.
    """

    def __init__(self, decay: float) -> None:
        self.decay = Number(low=0, below=1).read(decay, name='ema')
        self.values: dict[str, float] = {}

    def update(self, values: Mapping[str, float]) -> dict[str, float]:
        """Take new values in; returns the averages."""
        for name, value in values.items():
            before = self.values.get(name, value)
            self.values[name] = self.decay * before + (1 - self.decay) * value
        return dict(self.values)
