"""Quantization-aware training in mmengine's loops."""

from taskptq.qat.hook import QATHook

__all__ = ['QATHook']
