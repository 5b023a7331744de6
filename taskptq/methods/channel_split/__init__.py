"""Outlier channels as several copies of a fraction each."""

from taskptq.methods.channel_split.rewrite import ChannelSplit

__all__ = ['ChannelSplit']
