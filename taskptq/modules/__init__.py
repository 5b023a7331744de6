"""Layer 1: quantized counterparts of float modules; on top of the core."""

from taskptq.modules.attention import (
    AttendedTap,
    QuantAttention,
    attention_bias,
    quantized,
)
from taskptq.modules.base import (
    QuantModule,
    Scheme,
    build_quantizer,
    quant_modules,
)
from taskptq.modules.conditional_attention import QuantConditionalAttention
from taskptq.modules.conv import QuantConv2d, QuantConvTranspose2d
from taskptq.modules.deform_attention import QuantMultiScaleDeformableAttention
from taskptq.modules.dynamic_class import counterpart_class
from taskptq.modules.linear import QuantLinear
from taskptq.modules.multihead_attention import (
    QuantMultiheadAttention,
    leave_fast_paths,
)
from taskptq.modules.sam_attention import (
    QuantSamDecoderAttention,
    QuantSamEncoderAttention,
)
from taskptq.modules.sharing import SharedInputs, same_tensor, share_inputs
from taskptq.modules.window_attention import QuantWindowMSA

__all__ = [
    'AttendedTap',
    'QuantAttention',
    'QuantConditionalAttention',
    'QuantConv2d',
    'QuantConvTranspose2d',
    'QuantLinear',
    'QuantModule',
    'QuantMultiScaleDeformableAttention',
    'QuantMultiheadAttention',
    'QuantSamDecoderAttention',
    'QuantSamEncoderAttention',
    'QuantWindowMSA',
    'Scheme',
    'SharedInputs',
    'attention_bias',
    'build_quantizer',
    'counterpart_class',
    'leave_fast_paths',
    'quant_modules',
    'quantized',
    'same_tensor',
    'share_inputs',
]
