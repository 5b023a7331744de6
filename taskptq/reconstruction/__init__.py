"""Layer 3: learned and closed-form rounding, unit by unit; freezing."""

from taskptq.reconstruction.config import ReconstructionConfig
from taskptq.reconstruction.freeze import FreezeReport, freeze
from taskptq.reconstruction.losses import (
    MSEReconLoss,
    ReconContext,
    ReconLoss,
)
from taskptq.reconstruction.reconstruct import reconstruct
from taskptq.reconstruction.report import ReconstructionReport

__all__ = [
    'FreezeReport',
    'MSEReconLoss',
    'ReconContext',
    'ReconLoss',
    'ReconstructionConfig',
    'ReconstructionReport',
    'freeze',
    'reconstruct',
]
