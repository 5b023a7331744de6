"""Connect the lower layers to mmengine."""

from taskptq.engine.agreement_metrics import BoxAgreement, BoxDump
from taskptq.engine.builder import (
    build_adapter,
    build_loss,
    build_qconfig,
    build_rewrites,
)
from taskptq.engine.calibration_config import CalibrationConfig
from taskptq.engine.calibration_data import (
    CalibrationBatches,
    EvaluationSource,
    build_calibration,
)
from taskptq.engine.noise_hook import NoiseHook
from taskptq.engine.pipeline import quantize_model
from taskptq.engine.ptq_hook import PTQHook
from taskptq.engine.recipe import Recipe
from taskptq.engine.restore import restore_model

__all__ = [
    'BoxAgreement',
    'BoxDump',
    'CalibrationBatches',
    'CalibrationConfig',
    'EvaluationSource',
    'NoiseHook',
    'PTQHook',
    'Recipe',
    'build_adapter',
    'build_calibration',
    'build_loss',
    'build_qconfig',
    'build_rewrites',
    'quantize_model',
    'restore_model',
]
