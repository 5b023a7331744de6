"""Sensitivity Aware Selection: choose and weigh the heads that matter.

After Fan et al., AAAI 2024, who select influential heads and refine the
objective at run time; thresholds and weights are our reconstruction.
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
    """Turn sensitivities into weights of the heads.

    >>> selection = HeadSelection(rho=0.5)
    >>> selection.weights({'cls': 3.0, 'reg': 1.0, 'off': 2.0})
    {'cls': 0.6, 'reg': 0.0, 'off': 0.4}

    Args:
        selection: 'threshold' keeps heads with at least ``rho`` times the
            highest sensitivity, 'topk' the ``top_k`` highest, None keeps all
            with equal weights.
        rho: Share of the highest sensitivity, [0, 1].
        top_k: Number of heads to keep, at least 1.
        floor: Share of the weight that is spread evenly over all heads,
            selected or not, [0, 1].

    Raises:
        ValueError: If a value is invalid.
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
        # If no head is sensitive, there is nothing to select by.
        if self.selection is None or highest <= 0:
            return names
        if self.selection == 'threshold':
            least = self.rho * highest
        else:
            ranked = sorted(sensitivities.values(), reverse=True)
            least = ranked[min(self.top_k, len(ranked)) - 1]
        kept = [n for n in names if sensitivities[n] >= least]
        if self.selection == 'topk':
            # On ties the first heads win.
            kept.sort(key=lambda name: -sensitivities[name])
            kept = sorted(kept[: self.top_k], key=names.index)
        return kept

    def weights(self, sensitivities: Mapping[str, float]) -> dict[str, float]:
        """Return the weight of every head; they sum to 1.

        A kept head weighs ``S_i / sum S`` over the kept heads. Weights are
        equal without a selection, or if every sensitivity is 0.
        """
        kept = self.kept(sensitivities)
        total = sum(sensitivities[name] for name in kept)
        equal = self.selection is None or total <= 0
        even = 1 / max(1, len(sensitivities))
        weights = {}
        for name, value in sensitivities.items():
            share = even if equal else value / total * (name in kept)
            weights[name] = (1 - self.floor) * share + self.floor * even
        return weights


class MovingAverage:
    """Exponential moving average of named values, starting at the first.

    Args:
        decay: Weight of the previous average, [0, 1).

    Raises:
        ValueError: If the decay is invalid.
    """

    def __init__(self, decay: float) -> None:
        self.decay = Number(low=0, below=1).read(decay, name='ema')
        self.values: dict[str, float] = {}

    def update(self, values: Mapping[str, float]) -> dict[str, float]:
        """Add new values and return the averages."""
        for name, value in values.items():
            before = self.values.get(name, value)
            self.values[name] = self.decay * before + (1 - self.decay) * value
        return dict(self.values)
