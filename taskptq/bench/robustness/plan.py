"""What is measured: rows of noises, and how they are named and grouped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from taskptq.robustness.attacks import ATTACKS
from taskptq.robustness.names import (
    IMAGE_KINDS,
    MODEL_KINDS,
    Noise,
    corruption_noises,
    joined,
    parse_noises,
    system_noises,
)

__all__ = [
    'CLEAN',
    'COMBINED',
    'FAMILIES',
    'AttackPlan',
    'Row',
    'attack_rows',
    'parse_row',
    'plan_rows',
    'worst_options',
]

FAMILIES = ('systems', 'corruptions', 'attacks')
CLEAN = 'clean'
COMBINED = 'combined'
TRANSFERRED = 'transferred'
# In pixel values: 2/255, 4/255 and 8/255 of the range.
EPSILONS = (2.0, 4.0, 8.0)


@dataclass(frozen=True, kw_only=True)
class AttackPlan:
    """One attack.

    Args:
        name: See ``taskptq.robustness.attacks.ATTACKS``.
        epsilon: Budget in pixel values.
        transferred: Attack the float model, and show the others its images.
    """

    name: str
    epsilon: float
    transferred: bool = False


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the results.

    Args:
        name: Its name.
        family: ``clean``, or one of ``FAMILIES``.
        noises: Noises, all at once.
        attack: The attack, for attacks.
    """

    name: str
    family: str
    noises: tuple[Noise, ...] = ()
    attack: AttackPlan | None = None

    @property
    def kind(self) -> str:
        """What the row is an option of."""
        if self.attack is not None or len(self.noises) != 1:
            return self.name.partition('=')[0]
        return self.noises[0].kind


def attack_rows(epsilons: Iterable[float] = EPSILONS) -> list[Row]:
    """Return the attacks at each budget.

    Args:
        epsilons: Budgets in pixel values.
    """
    rows = []
    budgets = tuple(epsilons)
    for name in ATTACKS:
        # Random signs look at no model: they are the same for all.
        kinds = (False,) if name == 'random' else (False, True)
        for transferred in kinds:
            label = f'{name}-{TRANSFERRED}' if transferred else name
            rows += [
                Row(
                    name=f'{label}={epsilon:g}',
                    family='attacks',
                    attack=AttackPlan(
                        name=name, epsilon=epsilon, transferred=transferred
                    ),
                )
                for epsilon in budgets
            ]
    return rows


def noise_row(noises: tuple[Noise, ...], *, name: str = '') -> Row:
    """Return the row of some noises."""
    systems = {*IMAGE_KINDS, *MODEL_KINDS}
    family = (
        'systems'
        if all(noise.kind in systems for noise in noises)
        else 'corruptions'
    )
    return Row(name=name or joined(noises), family=family, noises=noises)


def parse_row(name: str) -> Row:
    """Read the name of a row that was asked for.

    >>> parse_row('fgsm-transferred=4').attack.transferred
    True
    >>> parse_row('resize=opencv-nearest+upsample=bilinear').family
    'systems'

    Raises:
        ValueError: If it names no noise and no attack.
    """
    label, _, budget = name.partition('=')
    attack, _, suffix = label.partition('-')
    if attack in ATTACKS and suffix in ('', TRANSFERRED):
        try:
            epsilon = float(budget or EPSILONS[1])
        except ValueError:
            epsilon = 0.0
        if not 0 < epsilon <= 255:
            raise ValueError(
                f'{name!r}: the budget must be above 0 and at most 255 '
                'pixel values'
            )
        return next(r for r in attack_rows([epsilon]) if r.kind == label)
    return noise_row(parse_noises(name))


def plan_rows(
    families: Sequence[str],
    *,
    severities: Sequence[int],
    epsilons: Sequence[float] = EPSILONS,
    validation: bool = False,
) -> list[Row]:
    """Return the rows to measure, the clean one first.

    Args:
        families: Some of ``FAMILIES``.
        severities: Severities of corruptions.
        epsilons: Budgets of attacks.
        validation: Take the corruptions of the validation set.
    """
    rows = [Row(name=CLEAN, family=CLEAN)]
    if 'systems' in families:
        rows += [noise_row((noise,)) for noise in system_noises()]
    if 'corruptions' in families:
        rows += [
            noise_row((noise,))
            for noise in corruption_noises(severities, validation=validation)
        ]
    if 'attacks' in families:
        rows += attack_rows(epsilons)
    return rows


def worst_options(rows: Sequence[Row], values: Mapping[str, float]) -> Row:
    """Return the row of all kinds of system noise at once.

    Of each kind it has the option that costs the float model most; precision
    is left out, since a quantized model has its own.

    Args:
        rows: Rows of single noises.
        values: Name of a row -> metric of the float model; a row without is
            not applicable.

    Raises:
        ValueError: If no noise was measured.
    """
    worst: dict[str, Row] = {}
    for row in rows:
        if (
            row.family != 'systems'
            or len(row.noises) != 1
            or row.kind == 'precision'
            or row.name not in values
        ):
            continue
        best = worst.get(row.kind)
        if best is None or values[row.name] < values[best.name]:
            worst[row.kind] = row
    noises = tuple(row.noises[0] for row in worst.values())
    if not noises:
        raise ValueError('no system noise was measured, so none to combine')
    return noise_row(noises, name=COMBINED)
