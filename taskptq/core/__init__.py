"""Layer 0: the numeric core; torch only."""

from taskptq.core.analytic_clip import ACIQObserver
from taskptq.core.config import QuantizerConfig
from taskptq.core.float_weight import FloatQuantizer, FreeWeight
from taskptq.core.latent_weight import LatentWeight
from taskptq.core.learned_rounding import LearnedRounding
from taskptq.core.levels import LevelQuantizer
from taskptq.core.mse_observer import MSEObserver
from taskptq.core.observers import (
    HistogramObserver,
    KLObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    Observer,
    PercentileObserver,
)
from taskptq.core.quantizers import AffineQuantizer, LSQQuantizer, Quantizer
from taskptq.core.spec import QuantSpec
from taskptq.core.switches import (
    dropping,
    enable,
    float_only,
    observing,
    quantizing,
    transforming,
)

__all__ = [
    'ACIQObserver',
    'AffineQuantizer',
    'FloatQuantizer',
    'FreeWeight',
    'HistogramObserver',
    'KLObserver',
    'LSQQuantizer',
    'LatentWeight',
    'LearnedRounding',
    'LevelQuantizer',
    'MSEObserver',
    'MinMaxObserver',
    'MovingAverageMinMaxObserver',
    'Observer',
    'PercentileObserver',
    'QuantSpec',
    'Quantizer',
    'QuantizerConfig',
    'dropping',
    'enable',
    'float_only',
    'observing',
    'quantizing',
    'transforming',
]
