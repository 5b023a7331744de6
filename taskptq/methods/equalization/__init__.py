"""Cross-layer equalization of weight ranges."""

from taskptq.methods.equalization.rewrite import (
    CrossLayerEqualization,
    equalizing_scales,
)

__all__ = ['CrossLayerEqualization', 'equalizing_scales']
