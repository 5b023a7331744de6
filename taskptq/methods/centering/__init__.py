"""Centering of queries and keys: constants that a softmax doesn't see."""

from taskptq.methods.centering.centering import AttentionCentering

__all__ = ['AttentionCentering']
