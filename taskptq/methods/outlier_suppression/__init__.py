"""Outlier Suppression+: channels of LayerNorms shifted and scaled."""

from taskptq.methods.outlier_suppression.rewrite import ChannelShiftScale

__all__ = ['ChannelShiftScale']
