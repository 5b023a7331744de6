"""Tiny seeded models (below 20k weights) for tests."""

from taskptq.testing.models import (
    TINY_MODELS,
    TinyBlock,
    TinyConvNet,
    TinyModel,
    TinyTransformer,
    TinyTransposedNet,
    TinyWindowAttention,
    TinyWindowNet,
    tiny_batches,
    tiny_model,
)
from taskptq.testing.sam_models import (
    TinyRelativeAttention,
    TinyRelativeNet,
    TinyTokenAttention,
    TinyTwoWayBlock,
    TinyTwoWayNet,
)

__all__ = [
    'TINY_MODELS',
    'TinyBlock',
    'TinyConvNet',
    'TinyModel',
    'TinyRelativeAttention',
    'TinyRelativeNet',
    'TinyTokenAttention',
    'TinyTransformer',
    'TinyTransposedNet',
    'TinyTwoWayBlock',
    'TinyTwoWayNet',
    'TinyWindowAttention',
    'TinyWindowNet',
    'tiny_batches',
    'tiny_model',
]
