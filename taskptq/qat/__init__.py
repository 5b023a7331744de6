"""Training of quantized models inside mmengine's loops."""

from taskptq.qat.hook import QATHook

__all__ = ['QATHook']
