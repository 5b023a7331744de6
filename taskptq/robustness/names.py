"""Names of noises: ``kind=option``, or ``kind`` where there is one option."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from taskptq.robustness.colors import ROUND_TRIPS
from taskptq.robustness.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    VALIDATION,
)
from taskptq.robustness.decoding import DECODERS
from taskptq.robustness.resizing import METHODS

__all__ = [
    'IMAGE_KINDS',
    'MODEL_KINDS',
    'Noise',
    'corruption_noises',
    'joined',
    'parse_noise',
    'parse_noises',
    'system_noises',
]

# Kind -> options. The reference decoder is no noise.
IMAGE_KINDS: dict[str, tuple[str, ...]] = {
    'decode': tuple(name for name in DECODERS if name != 'opencv'),
    'resize': tuple(METHODS),
    'color': tuple(ROUND_TRIPS),
    'crop': ('1',),
}
MODEL_KINDS: dict[str, tuple[str, ...]] = {
    'ceil_mode': ('',),
    'upsample': ('nearest', 'bilinear', 'align-corners'),
    'box_offset': ('1',),
    'precision': ('float16', 'bfloat16'),
}
ALL = (*CORRUPTIONS, *VALIDATION)


@dataclass(frozen=True, kw_only=True, order=True)
class Noise:
    """One noise.

    Args:
        kind: See ``IMAGE_KINDS`` and ``MODEL_KINDS``, or a corruption.
        option: One of its options, or the severity of a corruption.
    """

    kind: str
    option: str = ''

    @property
    def name(self) -> str:
        """``kind=option``, or the kind alone."""
        return f'{self.kind}={self.option}' if self.option else self.kind

    @property
    def on_model(self) -> bool:
        """Whether it changes the model, not its images."""
        return self.kind in MODEL_KINDS


def parse_noise(name: str) -> Noise:
    """Read the name of a noise.

    >>> parse_noise('resize=opencv-nearest')
    Noise(kind='resize', option='opencv-nearest')
    >>> parse_noise('ceil_mode').on_model
    True

    Args:
        name: ``kind=option``; ``kind`` alone takes the first option.

    Raises:
        ValueError: If there is no such kind or option.
    """
    kind, _, option = name.partition('=')
    known = {**IMAGE_KINDS, **MODEL_KINDS}
    if kind in ALL:
        options = tuple(map(str, SEVERITIES))
    elif kind in known:
        options = known[kind]
    else:
        raise ValueError(
            f'noise {name!r} is unknown: choose one of '
            f'{", ".join((*known, *ALL))}'
        )
    option = option or options[0]
    if option not in options:
        raise ValueError(
            f'noise {kind!r} has no option {option!r}: choose one of '
            f'{", ".join(options)}'
        )
    return Noise(kind=kind, option=option)


def parse_noises(names: str) -> tuple[Noise, ...]:
    """Read noises joined by ``+``.

    >>> [noise.kind for noise in parse_noises('fog=3+ceil_mode')]
    ['fog', 'ceil_mode']

    Raises:
        ValueError: If one is unknown, or a kind is there twice.
    """
    noises = tuple(map(parse_noise, names.split('+')))
    kinds = [noise.kind for noise in noises]
    twice = sorted({kind for kind in kinds if kinds.count(kind) > 1})
    if twice:
        raise ValueError(f'{names!r} has {twice[0]!r} twice: keep one of them')
    return noises


def joined(noises: Iterable[Noise]) -> str:
    """Return the name of several noises; see :func:`parse_noises`."""
    return '+'.join(noise.name for noise in noises)


def system_noises() -> tuple[Noise, ...]:
    """Return every noise of a deployed system, by kind."""
    return tuple(
        Noise(kind=kind, option=option)
        for kind, options in {**IMAGE_KINDS, **MODEL_KINDS}.items()
        for option in options
    )


def corruption_noises(
    severities: Iterable[int] = SEVERITIES, *, validation: bool = False
) -> tuple[Noise, ...]:
    """Return the corruptions.

    Args:
        severities: Severities, 1 to 5.
        validation: Take the four of the validation set, not the fifteen.
    """
    levels = tuple(severities)
    return tuple(
        Noise(kind=name, option=str(level))
        for name in (VALIDATION if validation else CORRUPTIONS)
        for level in levels
    )
