"""Layers and blocks of mmcv."""

from torch import nn

from taskptq.hosts.registry import (
    register_block,
    register_computed_weight,
    register_conv_norm,
    register_counterpart,
    register_norm,
)

_MODULES = 'taskptq.modules'
_DEFORMABLE = f'{_MODULES}.deform_conv'
_MODULATED = 'mmcv.ops.modulated_deform_conv.ModulatedDeformConv2d'

COUNTERPARTS = {
    'mmcv.cnn.bricks.wrappers.Conv2d': f'{_MODULES}.conv.QuantConv2d',
    'mmcv.cnn.bricks.wrappers.ConvTranspose2d': (
        f'{_MODULES}.conv.QuantConvTranspose2d'
    ),
    'mmcv.cnn.bricks.wrappers.Linear': f'{_MODULES}.linear.QuantLinear',
    'mmcv.ops.multi_scale_deform_attn.MultiScaleDeformableAttention': (
        f'{_MODULES}.deform_attention.QuantMultiScaleDeformableAttention'
    ),
    'mmcv.cnn.bricks.conv2d_adaptive_padding.Conv2dAdaptivePadding': (
        f'{_MODULES}.same_padding_conv.QuantSamePaddingConv2d'
    ),
    'mmcv.ops.deform_conv.DeformConv2d': f'{_DEFORMABLE}.QuantDeformConv2d',
    'mmcv.ops.deform_conv.DeformConv2dPack': (
        f'{_DEFORMABLE}.QuantDeformConv2dPack'
    ),
    _MODULATED: f'{_DEFORMABLE}.QuantDeformConv2d',
    'mmcv.ops.saconv.SAConv2d': (
        f'{_MODULES}.switchable_conv.QuantSwitchableConv2d'
    ),
    f'{_MODULATED}Pack': f'{_DEFORMABLE}.QuantModulatedDeformConv2dPack',
}
BLOCKS = (
    'mmcv.cnn.bricks.conv_module.ConvModule',
    'mmcv.cnn.bricks.depthwise_separable_conv_module'
    '.DepthwiseSeparableConvModule',
    'mmcv.cnn.bricks.transformer.PatchEmbed',
    'mmcv.cnn.bricks.transformer.PatchMerging',
    'mmcv.cnn.bricks.transformer.BaseTransformerLayer',
)
CONV_NORM_CLASSES = (
    'mmcv.cnn.resnet.BasicBlock',
    'mmcv.cnn.resnet.Bottleneck',
    'mmcv.cnn.resnet.ResNet',
)

for _host, _counterpart in COUNTERPARTS.items():
    register_counterpart(_host, _counterpart)
for _host in BLOCKS:
    register_block(_host)
for _host in CONV_NORM_CLASSES:
    register_conv_norm(_host)
register_conv_norm('mmcv.cnn.bricks.conv_module.ConvModule', with_order=True)
register_norm('mmcv.ops.sync_bn.SyncBatchNorm')
for _host in ('ConvWS2d', 'ConvAWS2d'):
    register_computed_weight(f'mmcv.cnn.bricks.conv_ws.{_host}', nn.Conv2d)
