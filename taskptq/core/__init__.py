"""Layer 0: the numeric core; torch only."""
from taskptq.core.adaround import AdaRoundQuantizer
from taskptq.core.alignment import AlignedQuantizer
from taskptq.core.analytic_clip import ACIQObserver
from taskptq.core.attention_output import AttentionOutputObserver
from taskptq.core.config import QuantizerConfig
from taskptq.core.observers import (
    HistogramObserver,
    KLObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MSEObserver,
    Observer,
    PercentileObserver,
)
from taskptq.core.power_of_two import PowerOfTwoQuantizer
from taskptq.core.quantizers import AffineQuantizer, LSQQuantizer, Quantizer
from taskptq.core.spec import QuantSpec
from taskptq.core.state import (
    aligning,
    dropping,
    enable,
    float_only,
    observing,
    quantizing,
)

__all__ = [
    'ACIQObserver',
    'AdaRoundQuantizer',
    'AffineQuantizer',
    'AlignedQuantizer',
    'AttentionOutputObserver',
    'HistogramObserver',
    'KLObserver',
    'LSQQuantizer',
    'MSEObserver',
    'MinMaxObserver',
    'MovingAverageMinMaxObserver',
    'Observer',
    'PercentileObserver',
    'PowerOfTwoQuantizer',
    'QuantSpec',
    'Quantizer',
    'QuantizerConfig',
    'aligning',
    'dropping',
    'enable',
    'float_only',
    'observing',
    'quantizing',
]
