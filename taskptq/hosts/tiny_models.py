"""Attentions and blocks of the tiny models in ``taskptq.testing``."""

from taskptq.hosts.registry import (
    register_block,
    register_conv_norm,
    register_counterpart,
    register_rows,
)

_MODELS = 'taskptq.testing.models'
_SAM_MODELS = 'taskptq.testing.sam_models'
_MODULES = 'taskptq.modules'

register_counterpart(
    f'{_MODELS}.TinyWindowAttention',
    f'{_MODULES}.window_attention.QuantWindowMSA',
)
register_counterpart(
    f'{_SAM_MODELS}.TinyRelativeAttention',
    f'{_MODULES}.sam_attention.QuantSamEncoderAttention',
)
register_counterpart(
    f'{_SAM_MODELS}.TinyTokenAttention',
    f'{_MODULES}.sam_attention.QuantSamDecoderAttention',
)
register_block(f'{_MODELS}.TinyBlock')
register_conv_norm(f'{_MODELS}.TinyBlock')
register_block(f'{_SAM_MODELS}.TinyTwoWayBlock')
for _host in (
    'TinyRelativeAttention',
    'TinyTokenAttention',
    'TinyTwoWayBlock',
):
    register_rows(f'{_SAM_MODELS}.{_host}')
