"""Scores of robustness, and what quantization adds to a loss under noise.

P is the metric on clean images; mPC its mean over corruptions and severities;
rPC = mPC / P (Michaelis et al., "Benchmarking Robustness in Object
Detection", 2019).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

__all__ = ['Excess', 'excess', 'mean_performance', 'relative_performance']


def mean_performance(values: Mapping[str, Iterable[float]]) -> float:
    """Return mPC: the mean over corruptions of the mean over severities.

    >>> round(mean_performance({'fog': [0.4, 0.2], 'snow': [0.1, 0.1]}), 4)
    0.2

    Args:
        values: Corruption -> metric at each severity.

    Raises:
        ValueError: If there is no corruption or no severity.
    """
    means = []
    for name, found in values.items():
        measured = list(found)
        if not measured:
            raise ValueError(f'{name} has no severity')
        means.append(sum(measured) / len(measured))
    if not means:
        raise ValueError('mPC needs at least one corruption')
    return sum(means) / len(means)


def relative_performance(mean: float, *, clean: float) -> float | None:
    """Return rPC = mPC / P; None if P is zero."""
    return mean / clean if clean else None


@dataclass(frozen=True, kw_only=True)
class Excess:
    """What a quantized model loses against float, clean and under noise.

    Args:
        clean: P of float less P of the quantized model.
        noise: The same of the mean under noise.
        relative_clean: 1 - P_q / P_float; None if P_float is zero.
        relative_noise: The same of the mean under noise.
    """

    clean: float
    noise: float
    relative_clean: float | None
    relative_noise: float | None

    @property
    def excess(self) -> float:
        """How much more it loses under noise, in the metric's unit."""
        return self.noise - self.clean


def excess(
    *, float_clean: float, float_noise: float, clean: float, noise: float
) -> Excess:
    """Compare a quantized model with the float one.

    Args:
        float_clean: Metric of the float model on clean images.
        float_noise: Its mean under noise.
        clean: Metric of the quantized model on clean images.
        noise: Its mean under noise.
    """
    return Excess(
        clean=float_clean - clean,
        noise=float_noise - noise,
        relative_clean=1 - clean / float_clean if float_clean else None,
        relative_noise=1 - noise / float_noise if float_noise else None,
    )
