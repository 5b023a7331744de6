"""Explicit scales of input channels, in front of the reader's grid."""

from taskptq.methods.channel_scale.rewrite import ChannelScale

__all__ = ['ChannelScale']
