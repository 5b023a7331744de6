"""Losses between features of a quantized and of a float model."""

from taskptq.methods.feature_losses.base import FeatureLoss, rows_of, tokens_of
from taskptq.methods.feature_losses.divergence import FeatureDivergenceLoss
from taskptq.methods.feature_losses.squared import (
    FeatureDistanceLoss,
    SquaredFeatureLoss,
)

__all__ = [
    'FeatureDistanceLoss',
    'FeatureDivergenceLoss',
    'FeatureLoss',
    'SquaredFeatureLoss',
    'rows_of',
    'tokens_of',
]
