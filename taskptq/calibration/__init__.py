"""Layer 3: ranges of activations, from data."""

from taskptq.calibration.calibrate import CalibrationReport, calibrate

__all__ = ['CalibrationReport', 'calibrate']
