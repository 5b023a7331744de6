"""Attentions, blocks and heads of mmseg."""

from taskptq.hosts.registry import (
    register_block,
    register_conv_norm,
    register_counterpart,
    register_float,
    register_output_layer,
    register_training_only,
)

BLOCKS = (
    'mmseg.models.backbones.cgnet.ContextGuidedBlock',
    'mmseg.models.backbones.resnet.BasicBlock',
    'mmseg.models.backbones.resnet.Bottleneck',
    'mmseg.models.backbones.hrnet.HRModule',
    'mmseg.models.backbones.swin.SwinBlock',
    'mmseg.models.backbones.mit.TransformerEncoderLayer',
    'mmseg.models.backbones.vit.TransformerEncoderLayer',
    'mmseg.models.utils.embed.PatchEmbed',
    'mmseg.models.utils.embed.PatchMerging',
    'mmseg.models.utils.inverted_residual.InvertedResidual',
    'mmseg.models.necks.fpn.FPN',
    'mmseg.models.decode_heads.decode_head.BaseDecodeHead',
)
CONV_NORM_CLASSES = (
    'mmseg.models.backbones.hrnet.HRNet',
    'mmseg.models.backbones.resnet.BasicBlock',
    'mmseg.models.backbones.resnet.Bottleneck',
    'mmseg.models.backbones.resnet.ResNet',
)
# Scores of classes, of masks.
OUTPUT_LAYERS = (
    r're:(.*\.)?(fc|conv)_seg(\.\d+)?',
    r're:(.*\.)?linear_pred',
)
TRAINING_ONLY = {
    'mmseg.models.decode_heads.ddr_head.DDRHead': ('aux_cls_seg',),
    'mmseg.models.decode_heads.pid_head.PIDHead': (
        'p_head',
        'd_head',
        'p_cls_seg',
        'd_cls_seg',
    ),
}

register_counterpart(
    'mmseg.models.backbones.swin.WindowMSA',
    'taskptq.modules.window_attention.QuantWindowMSA',
)
register_float(
    'mmseg.models.backbones.bisenetv1.AttentionRefinementModule',
    'gates channels by an elementwise product, without a matmul',
)
for _host in BLOCKS:
    register_block(_host)
for _host in CONV_NORM_CLASSES:
    register_conv_norm(_host)
for _pattern in OUTPUT_LAYERS:
    register_output_layer(_pattern)
for _host, _names in TRAINING_ONLY.items():
    register_training_only(*_names, host=_host)
register_training_only('auxiliary_head')
