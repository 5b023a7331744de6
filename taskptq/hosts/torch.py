"""Layers and blocks of torch and torchvision."""

from taskptq.hosts.registry import (
    register_block,
    register_conv_norm,
    register_counterpart,
    register_float,
    register_training_only,
)

_MODULES = 'taskptq.modules'

COUNTERPARTS = {
    'torch.nn.modules.conv.Conv2d': f'{_MODULES}.conv.QuantConv2d',
    'torch.nn.modules.conv.ConvTranspose2d': (
        f'{_MODULES}.conv.QuantConvTranspose2d'
    ),
    'torch.nn.modules.conv.Conv1d': f'{_MODULES}.conv1d.QuantConv1d',
    'torch.nn.modules.conv.ConvTranspose1d': (
        f'{_MODULES}.conv1d.QuantConvTranspose1d'
    ),
    'torchvision.ops.deform_conv.DeformConv2d': (
        f'{_MODULES}.deform_conv.QuantDeformConv2d'
    ),
    'torch.nn.modules.linear.Linear': f'{_MODULES}.linear.QuantLinear',
    'torch.nn.modules.linear.NonDynamicallyQuantizableLinear': (
        f'{_MODULES}.linear.QuantLinear'
    ),
    'torch.nn.modules.activation.MultiheadAttention': (
        f'{_MODULES}.multihead_attention.QuantMultiheadAttention'
    ),
    # Layers that a rewrite made.
    f'{_MODULES}.scaled.ScaledConv2d': f'{_MODULES}.scaled.QuantScaledConv2d',
    f'{_MODULES}.scaled.ScaledLinear': f'{_MODULES}.scaled.QuantScaledLinear',
}
BLOCKS = (
    'torch.nn.modules.transformer.TransformerEncoderLayer',
    'torch.nn.modules.transformer.TransformerDecoderLayer',
    'torchvision.models.resnet.BasicBlock',
    'torchvision.models.resnet.Bottleneck',
)
CONV_NORM_CLASSES = (
    'torchvision.models.resnet.BasicBlock',
    'torchvision.models.resnet.Bottleneck',
    'torchvision.models.resnet.ResNet',
)

for _host, _counterpart in COUNTERPARTS.items():
    register_counterpart(_host, _counterpart)
for _host in BLOCKS:
    register_block(_host)
for _host in CONV_NORM_CLASSES:
    register_conv_norm(_host)
register_float(
    'torch.nn.modules.sparse.Embedding', 'look-up table, no arithmetic'
)
# Names that models of any package give to such parts.
register_training_only('aux')
