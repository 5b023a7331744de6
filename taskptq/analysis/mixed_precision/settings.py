"""Settings of the recipe key ``mixed_precision``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from taskptq.analysis.mixed_precision.units import FLOAT, Bits
from taskptq.core.rules import Rule
from taskptq.core.settings import (
    Choice,
    Flag,
    Items,
    Number,
    Table,
    Whole,
    check_fields,
    check_keys,
    refuse,
    setting,
    within,
)
from taskptq.core.spec import MAX_BITS, MIN_BITS
from taskptq.reconstruction.config import ReconstructionConfig

__all__ = ['BUDGETS', 'MixedPrecisionConfig']

BUDGETS = ('bops', 'bytes', 'macs_above', 'latency')
POINTS = ('weight', 'activation', 'query', 'key', 'value', 'softmax')


class BitsRule(Rule):
    """Rule for a candidate: whole bits, or float."""

    def convert(self, value: Any, name: str) -> Bits:
        """Return the candidate."""
        if value == FLOAT:
            return FLOAT
        return Whole(low=MIN_BITS, high=MAX_BITS).convert(value, name)

    def allowed(self) -> str:
        """Name both."""
        return f'{MIN_BITS} to {MAX_BITS} bits, or {FLOAT!r}'


@dataclass(frozen=True, kw_only=True)
class MixedPrecisionConfig:
    """How bits are chosen, see ``taskptq.analysis.mixed_precision``.

    Args:
        keep: Share of the float model's score that should remain, (0, 1).
        budget: Name of a cost -> most of it that may be spent. The first is
            what is spared; without any it is ``bops``, unlimited.
        latency_table: Measured times for the budget ``latency``:
            ``float_ms`` and ``layers``, see ``LatencyTable``; None measures
            the layers in ONNX Runtime.
        candidates: Bits to choose from besides those of the recipe;
            'float' leaves whole layers float.
        points: Points whose bits may change.
        cures: Settings of points, e.g. ``dict(softmax=dict(...))``, that are
            tried in this order before any point gets more bits, where the
            recipe keeps too little; see ``taskptq.engine.precision_cures``.
        reconstruction: Settings of a reconstruction where rounding to
            nearest keeps too little, before anything that costs at run time,
            e.g. ``dict(rounding='gptq')``; None leaves it to the recipe.
        preview_rounding: Rank weights of less than 7 bits by what GPTQ leaves
            of each, instead of a fixed share of the loss of rounding to
            nearest; for recipes that round by GPTQ.
        num_images: Calibration images for sensitivities and verification.

    Raises:
        SettingError: If a value is invalid.
    """

    keep: float = setting(0.99, Number(above=0, below=1))
    budget: Mapping[str, float] = field(
        default_factory=dict,
        metadata={'rule': Table(of=Number(low=0), keys=BUDGETS)},
    )
    latency_table: Mapping[str, Any] | None = setting(
        None, Table(optional=True, required=('float_ms', 'layers'))
    )
    candidates: tuple[Bits, ...] = setting(
        (8, 16, FLOAT), Items(of=BitsRule(optional=False), least=1, most=16)
    )
    points: tuple[str, ...] = setting(
        POINTS, Items(of=Choice(choices=POINTS), least=1)
    )
    cures: tuple[Mapping[str, Any], ...] = setting(
        (), Items(of=Table(of=Table(), keys=POINTS))
    )
    reconstruction: Mapping[str, Any] | None = setting(
        None, Table(optional=True)
    )
    preview_rounding: bool = setting(False, Flag())
    num_images: int = setting(16, Whole(low=1))

    def __post_init__(self) -> None:
        check_fields(self, name='mixed_precision')
        if len(set(self.candidates)) < len(self.candidates):
            raise refuse(
                'mixed_precision.candidates',
                list(self.candidates),
                'give each candidate once',
            )
        if self.latency_table is not None:
            self._check_table(self.latency_table)
        if self.reconstruction is not None:
            with within('mixed_precision.reconstruction'):
                ReconstructionConfig.from_dict(self.reconstruction)

    def _check_table(self, table: Mapping[str, Any]) -> None:
        name = 'mixed_precision.latency_table'
        times = Table(of=Number(low=0))
        Number(above=0).read(table['float_ms'], name=f'{name}.float_ms')
        Table(of=times).read(table['layers'], name=f'{name}.layers')

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> MixedPrecisionConfig:
        """Read the recipe's dict.

        Raises:
            SettingError: If a key is unknown or a value invalid.
        """
        Table().read(config, name='mixed_precision')
        known = [item.name for item in fields(cls)]
        check_keys(config, known, name='mixed_precision')
        return cls(**config)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types; ``from_dict`` reads them back."""
        plain: dict[str, Any] = {
            'keep': self.keep,
            'budget': dict(self.budget),
            'candidates': list(self.candidates),
            'points': list(self.points),
            'reconstruction': (
                None
                if self.reconstruction is None
                else dict(self.reconstruction)
            ),
            'num_images': self.num_images,
        }
        if self.preview_rounding:
            plain['preview_rounding'] = True
        if self.cures:
            plain['cures'] = [
                {point: dict(one) for point, one in cure.items()}
                for cure in self.cures
            ]
        if self.latency_table is not None:
            plain['latency_table'] = dict(self.latency_table)
        return plain
