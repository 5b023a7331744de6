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

__all__ = [
    'TINY_MODELS',
    'TinyBlock',
    'TinyConvNet',
    'TinyModel',
    'TinyTransformer',
    'TinyTransposedNet',
    'TinyWindowAttention',
    'TinyWindowNet',
    'tiny_batches',
    'tiny_model',
]
