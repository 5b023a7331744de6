"""PTQ4SAM: bimodal integration and adaptive granularity."""

from taskptq.methods.ptq4sam.bimodal_integration import BimodalIntegration
from taskptq.methods.ptq4sam.key_shift import KeyShift
from taskptq.methods.ptq4sam.output_error import AttentionOutputObserver
from taskptq.methods.ptq4sam.power_of_two import PowerOfTwoQuantizer

__all__ = [
    'AttentionOutputObserver',
    'BimodalIntegration',
    'KeyShift',
    'PowerOfTwoQuantizer',
]
