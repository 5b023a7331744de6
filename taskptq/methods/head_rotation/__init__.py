"""Rotation of the channels of attention heads."""

from taskptq.methods.head_rotation.rewrite import HeadRotation

__all__ = ['HeadRotation']
