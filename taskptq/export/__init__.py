"""Quantized models as files: packed checkpoints."""

from taskptq.export.checkpoint import (
    QuantizedCheckpointError,
    is_quantized,
    load,
    pack_model,
    save,
    unpack_model,
    verify,
)
from taskptq.export.packing import pack_codes, unpack_codes

__all__ = [
    'QuantizedCheckpointError',
    'is_quantized',
    'load',
    'pack_codes',
    'pack_model',
    'save',
    'unpack_codes',
    'unpack_model',
    'verify',
]
