"""Attentions, blocks and output networks of segment_anything."""

from taskptq.hosts.registry import (
    register_block,
    register_counterpart,
    register_float,
    register_output_layer,
    register_output_sequence,
    register_rows,
)

_MODELING = 'segment_anything.modeling'
_COUNTERPARTS = 'taskptq.modules.sam_attention'

# PTQ4SAM reconstructs attention and MLP of an encoder block apart; as one
# unit they are trained together, and each block takes over its input from the
# one before instead of running the model up to it.
BLOCKS = (
    f'{_MODELING}.image_encoder.Block',
    f'{_MODELING}.common.MLPBlock',
    f'{_MODELING}.transformer.TwoWayAttentionBlock',
    f'{_MODELING}.mask_decoder.MLP',
)
OUTPUT_SEQUENCES = (
    # Masks are products of hyper-network outputs and upscaled features.
    r're:(.*\.)?output_hypernetworks_mlps\.\d+\.layers',
    r're:(.*\.)?output_upscaling',
    r're:(.*\.)?iou_prediction_head\.layers',
)

register_counterpart(
    f'{_MODELING}.image_encoder.Attention',
    f'{_COUNTERPARTS}.QuantSamEncoderAttention',
)
register_counterpart(
    f'{_MODELING}.transformer.Attention',
    f'{_COUNTERPARTS}.QuantSamDecoderAttention',
)
register_float(
    f'{_MODELING}.prompt_encoder.PositionEmbeddingRandom',
    'turns coordinates into phases, which stay float',
)
register_output_layer('products', host=f'{_MODELING}.mask_decoder.MaskDecoder')
register_float(
    f'{_MODELING}.image_encoder.ImageEncoderViT',
    'adds a positional table to the tokens',
)
for _host in BLOCKS:
    register_block(_host)
    register_rows(_host)
for _host in ('image_encoder.Attention', 'transformer.Attention'):
    register_rows(f'{_MODELING}.{_host}')
for _pattern in OUTPUT_SEQUENCES:
    register_output_sequence(_pattern)
