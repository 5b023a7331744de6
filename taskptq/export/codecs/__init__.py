"""Codecs of the sections of a quantized file; see ``registry``."""

from taskptq.export.codecs import (
    constriction,
    dense,
    planes,
    rans,
    zeros,
    zstd,
)
from taskptq.export.codecs.registry import (
    CHOICES,
    CodecError,
    Coder,
    Layout,
    MissingCodecError,
    chosen_codecs,
    codec_names,
    register_codec,
)

__all__ = [
    'CHOICES',
    'CodecError',
    'Coder',
    'Layout',
    'MissingCodecError',
    'chosen_codecs',
    'codec_names',
    'constriction',
    'dense',
    'planes',
    'rans',
    'register_codec',
    'zeros',
    'zstd',
]
