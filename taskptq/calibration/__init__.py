"""Layer 3: calibration, reconstruction, freezing."""
from taskptq.calibration.calibrate import CalibrationReport, calibrate
from taskptq.calibration.config import ReconstructionConfig
from taskptq.calibration.freeze import FreezeReport, freeze
from taskptq.calibration.losses import MSEReconLoss, ReconContext, ReconLoss
from taskptq.calibration.reconstruct import reconstruct
from taskptq.calibration.report import ReconstructionReport

__all__ = [
    'CalibrationReport',
    'FreezeReport',
    'MSEReconLoss',
    'ReconContext',
    'ReconLoss',
    'ReconstructionConfig',
    'ReconstructionReport',
    'calibrate',
    'freeze',
    'reconstruct',
]
