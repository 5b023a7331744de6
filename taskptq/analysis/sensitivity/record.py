"""Records of a sensitivity analysis: one for each quantizer, and a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = [
    'ESTIMATORS',
    'POINTS',
    'PointSensitivity',
    'RoleSensitivity',
    'SensitivityReport',
]

ESTIMATORS = ('gradient', 'alone', 'leave-out')
# The settings of a recipe that quantizers follow; 'attention' are operands of
# products that no counterpart owns.
POINTS = (
    'weight',
    'activation',
    'query',
    'key',
    'value',
    'softmax',
    'attention',
)


@dataclass(frozen=True, kw_only=True)
class PointSensitivity:
    """One quantizer: what it costs, and what its tensor looks like.

    Losses are relative squared errors of the model's outputs per image, see
    ``loss.OutputLoss``: 0.01 is noise 20 dB below the signal. Those of the
    gradient estimator add up over points.

    Args:
        name: Qualified name of the quantizer.
        layer: Qualified name of the counterpart that owns it.
        point: One of ``POINTS``.
        role: Structural role, see ``roles``.
        num_bits: Bits of its grid now.
        macs: Multiply-accumulates per image of the products that read it.
        elements: Values of the tensor per image; of a weight, its values.
        sqnr_db: Signal over quantization noise at ``num_bits``, in dB.
        peak_to_std: Largest distance from the mean over the standard
            deviation.
        codes_used: Share of the grid's codes that occur, [0, 1].
        effective_bits: Effective number of bits of what the reader computes
            from the tensor, see ``signals.signals_of``.
        losses: Output loss if only this tensor is quantized, by bits, e.g.
            ``{'4': 0.3, '8': 0.001}``; float is 0. The leave-out estimator
            knows only ``num_bits``: what comes back if only this tensor is
            left float.
        producer: Class of the module that produced the tensor; '' if that
            is unknown, or for weights.
        per_channel: Whether each channel has its own scale.
        metric: The task's metric measured for this point; None if it was
            not asked for.
    """

    name: str
    layer: str
    point: str
    role: str
    num_bits: int
    macs: int
    elements: int
    sqnr_db: float
    peak_to_std: float
    codes_used: float
    effective_bits: float
    losses: dict[str, float]
    producer: str = ''
    per_channel: bool = False
    metric: float | None = None

    @property
    def loss(self) -> float:
        """Loss at the present bits."""
        return self.losses[str(self.num_bits)]

    def loss_at(self, bits: str | int) -> float:
        """Return the loss at some bits, or at 'float'.

        Raises:
            KeyError: If these bits were not estimated.
        """
        return 0.0 if bits == 'float' else self.losses[str(bits)]

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> PointSensitivity:
        """Restore what ``dataclasses.asdict`` gave."""
        losses = {str(k): float(v) for k, v in fields['losses'].items()}
        return cls(**{**fields, 'losses': losses})


@dataclass(frozen=True, kw_only=True)
class RoleSensitivity:
    """All points of one role together; losses are measured.

    Args:
        role: The role.
        num_points: Its quantizers.
        macs: Multiply-accumulates per image that read them.
        alone: Output loss if only this role is quantized.
        others: Output loss if all but this role is quantized.
        metric: The task's metric with all but this role quantized; None if
            it was not asked for.
    """

    role: str
    num_points: int
    macs: int
    alone: float
    others: float
    metric: float | None = None


@dataclass(kw_only=True)
class SensitivityReport:
    """Sensitivities of a prepared and calibrated model.

    Args:
        points: Every quantizer that has a range, in the model's order.
        estimator: One of ``ESTIMATORS``.
        num_images: Images that the losses are from.
        seconds: Wall time.
        total: Measured output loss with every point quantized.
        roles: Measured ceilings by role; may be empty.
        metric: Name of the task's metric, '' without.
        metric_float: The metric of the float model.
        metric_quant: The metric with every point quantized.
        notes: Sentences on how the numbers came about.
    """

    points: Sequence[PointSensitivity]
    estimator: str
    num_images: int
    seconds: float = 0.0
    total: float = 0.0
    roles: Sequence[RoleSensitivity] = ()
    metric: str = ''
    metric_float: float | None = None
    metric_quant: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def estimated(self) -> float:
        """Sum of the losses of all points at their present bits."""
        return sum(point.loss for point in self.points)

    def sorted(self) -> list[PointSensitivity]:
        """Return the points, the worst first."""
        return sorted(self.points, key=lambda point: -point.loss)

    def by_role(self) -> dict[str, list[PointSensitivity]]:
        """Return the points of each role, the costliest role first."""
        groups: dict[str, list[PointSensitivity]] = {}
        for point in self.sorted():
            groups.setdefault(point.role, []).append(point)
        return dict(
            sorted(
                groups.items(),
                key=lambda item: -sum(point.loss for point in item[1]),
            )
        )

    def sentences(self, *, most: int = 5) -> list[str]:
        """Return what a user needs to know, the most important first.

        Args:
            most: Points to name at most.
        """
        from taskptq.analysis.sensitivity.sentences import sentences_of

        return sentences_of(self, most=most)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        return {
            **vars(self),
            'points': [asdict(point) for point in self.points],
            'roles': [asdict(role) for role in self.roles],
            'notes': list(self.notes),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> SensitivityReport:
        """Restore what :meth:`to_dict` gave.

        Raises:
            KeyError: If a field is missing.
            TypeError: If there is an unknown field.
        """
        return cls(
            **{
                **content,
                'points': tuple(
                    PointSensitivity.from_dict(point)
                    for point in content['points']
                ),
                'roles': tuple(
                    RoleSensitivity(**role) for role in content['roles']
                ),
            }
        )
