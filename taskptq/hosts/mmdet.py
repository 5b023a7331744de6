"""Attentions, blocks and heads of mmdet."""

from taskptq.hosts.registry import (
    register_block,
    register_conv_norm,
    register_counterpart,
    register_float,
    register_output_layer,
    register_output_sequence,
    register_position_layer,
    register_replayed_input,
    register_training_only,
)

_MODULES = 'taskptq.modules'
_DETR_LAYERS = 'mmdet.models.layers.transformer.detr_layers'
_LEVELS = 'adds an embedding of its level to each token'

COUNTERPARTS = {
    'mmdet.models.layers.transformer.utils.ConditionalAttention': (
        f'{_MODULES}.conditional_attention.QuantConditionalAttention'
    ),
    'mmdet.models.backbones.swin.WindowMSA': (
        f'{_MODULES}.window_attention.QuantWindowMSA'
    ),
}
KEPT_FLOAT = {
    'mmdet.models.layers.se_layer.ChannelAttention': (
        'gates channels by an elementwise product, without a matmul'
    ),
    'mmdet.models.dense_heads.gfl_head.Integral': (
        'decodes boxes: the mean of a distribution'
    ),
    'mmdet.models.detectors.deformable_detr.DeformableDETR': _LEVELS,
    'mmdet.models.detectors.dino.DINO': _LEVELS,
}
BLOCKS = (
    'mmdet.models.backbones.resnet.BasicBlock',
    'mmdet.models.backbones.resnet.Bottleneck',
    'mmdet.models.backbones.hrnet.HRModule',
    'mmdet.models.backbones.csp_darknet.Focus',
    'mmdet.models.backbones.csp_darknet.SPPBottleneck',
    'mmdet.models.backbones.pvt.PVTEncoderLayer',
    'mmdet.models.backbones.swin.SwinBlock',
    'mmdet.models.layers.csp_layer.CSPLayer',
    'mmdet.models.layers.inverted_residual.InvertedResidual',
    'mmdet.models.layers.transformer.utils.PatchEmbed',
    'mmdet.models.layers.transformer.utils.PatchMerging',
    f'{_DETR_LAYERS}.DetrTransformerEncoderLayer',
    f'{_DETR_LAYERS}.DetrTransformerDecoderLayer',
    'mmdet.models.necks.fpn.FPN',
    'mmdet.models.necks.cspnext_pafpn.CSPNeXtPAFPN',
    'mmdet.models.necks.channel_mapper.ChannelMapper',
    'mmdet.models.dense_heads.base_dense_head.BaseDenseHead',
    'mmdet.models.dense_heads.detr_head.DETRHead',
    'mmdet.models.roi_heads.bbox_heads.bbox_head.BBoxHead',
    'mmdet.models.roi_heads.mask_heads.fcn_mask_head.FCNMaskHead',
)
CONV_NORM_CLASSES = (
    'mmdet.models.backbones.hrnet.HRNet',
    'mmdet.models.backbones.resnet.BasicBlock',
    'mmdet.models.backbones.resnet.Bottleneck',
    'mmdet.models.backbones.resnet.ResNet',
)
# Boxes and scores.
OUTPUT_LAYERS = (
    r're:(.*\.)?(rpn|retina|atss|gfl|fcos|rtm)_(cls|reg|obj|centerness)'
    r'(\.\d+)?',
    r're:(.*\.)?(fc|conv)_(cls|reg|centerness|logits)(\.\d+)?',
    r're:(.*\.)?multi_level_conv_(cls|reg|obj)\.\d+',
    r're:(.*\.)?(cls_embed|class_embed|fc_cls)',
    r're:(.*\.)?cls_branches\.\d+',
    # Centers of boxes, which the heads only shift. Conditional DETR's come of
    # its learned queries alone: an error there is in every image alike. In
    # DAB-DETR and DINO that network turns centers into positions.
    r're:(.*\.)?reference_points_fc',
    r're:(.*\.)?decoder\.ref_point_head\.layers\.\d+',
)
OUTPUT_SEQUENCES = (
    r're:(.*\.)?reg_branches\.\d+',
    r're:(.*\.)?cls_branches\.\d+',
    r're:(.*\.)?bbox_embed(\.layers)?',
    r're:(.*\.)?bbox_head\.fc_reg(\.layers)?',
)
# Heads whose own products are masks, by the names of their points.
MASK_PRODUCTS = (
    'mmdet.models.dense_heads.condinst_head.CondInstMaskHead',
    'mmdet.models.dense_heads.maskformer_head.MaskFormerHead',
    'mmdet.models.dense_heads.solov2_head.SOLOV2Head',
    'mmdet.models.dense_heads.yolact_head.YOLACTProtonet',
)
TRAINING_ONLY = {
    'mmdet.models.dense_heads.ddq_detr_head.DDQDETRHead': (
        'aux_cls_branches',
        'aux_reg_branches',
    ),
    'mmdet.models.dense_heads.yolact_head.YOLACTProtonet': ('segm_branch',),
    'mmdet.models.detectors.semi_base.SemiBaseDetector': (
        'student',
        'teacher',
    ),
}

for _host, _counterpart in COUNTERPARTS.items():
    register_counterpart(_host, _counterpart)
for _host, _reason in KEPT_FLOAT.items():
    register_float(_host, _reason)
for _host in BLOCKS:
    register_block(_host)
for _host in CONV_NORM_CLASSES:
    register_conv_norm(_host)
for _pattern in OUTPUT_LAYERS:
    register_output_layer(_pattern)
for _host in MASK_PRODUCTS:
    register_output_layer('products', host=_host)
for _pattern in OUTPUT_SEQUENCES:
    register_output_sequence(_pattern)
for _host, _names in TRAINING_ONLY.items():
    register_training_only(*_names, host=_host)
register_training_only('aux_head', 'dn_query_generator', 'teacher_model')
register_position_layer(r're:(.*\.)?(qpos_proj|kpos_proj|qpos_sine_proj)')
register_replayed_input(
    'mmdet.models.roi_heads.roi_extractors.base_roi_extractor'
    '.BaseRoIExtractor',
    'rois',
)
