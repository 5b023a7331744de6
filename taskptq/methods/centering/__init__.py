"""Centering of keys and values in attentions."""

from taskptq.methods.centering.centering import AttentionCentering

__all__ = ['AttentionCentering']
