"""Which tensors of a model its quantization hurts, and by how much."""

from taskptq.analysis.sensitivity.record import (
    PointSensitivity,
    RoleSensitivity,
    SensitivityReport,
)

__all__ = ['PointSensitivity', 'RoleSensitivity', 'SensitivityReport']
