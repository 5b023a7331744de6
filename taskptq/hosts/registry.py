"""Which host class has which counterpart: the only list of host names.

Everything is a dotted name, resolved late: a host that is not installed is
simply not mapped.
"""

from __future__ import annotations

import importlib

from torch import nn
from torch.nn.utils import parametrize

from taskptq.modules.base import QuantModule

_MODULES = 'taskptq.modules'

# Float class -> (module, class) of its counterpart.
COUNTERPARTS: dict[str, tuple[str, str]] = {
    'torch.nn.modules.conv.Conv2d': (f'{_MODULES}.conv', 'QuantConv2d'),
    'mmcv.cnn.bricks.wrappers.Conv2d': (f'{_MODULES}.conv', 'QuantConv2d'),
    'torch.nn.modules.conv.ConvTranspose2d': (
        f'{_MODULES}.conv',
        'QuantConvTranspose2d',
    ),
    'mmcv.cnn.bricks.wrappers.ConvTranspose2d': (
        f'{_MODULES}.conv',
        'QuantConvTranspose2d',
    ),
    'torch.nn.modules.linear.Linear': (f'{_MODULES}.linear', 'QuantLinear'),
    'torch.nn.modules.linear.NonDynamicallyQuantizableLinear': (
        f'{_MODULES}.linear',
        'QuantLinear',
    ),
    'mmcv.cnn.bricks.wrappers.Linear': (f'{_MODULES}.linear', 'QuantLinear'),
    'torch.nn.modules.activation.MultiheadAttention': (
        f'{_MODULES}.multihead_attention',
        'QuantMultiheadAttention',
    ),
    'mmdet.models.layers.transformer.utils.ConditionalAttention': (
        f'{_MODULES}.conditional_attention',
        'QuantConditionalAttention',
    ),
    'mmdet.models.backbones.swin.WindowMSA': (
        f'{_MODULES}.window_attention',
        'QuantWindowMSA',
    ),
    'mmseg.models.backbones.swin.WindowMSA': (
        f'{_MODULES}.window_attention',
        'QuantWindowMSA',
    ),
    'taskptq.testing.models.TinyWindowAttention': (
        f'{_MODULES}.window_attention',
        'QuantWindowMSA',
    ),
    'mmcv.ops.multi_scale_deform_attn.MultiScaleDeformableAttention': (
        f'{_MODULES}.deform_attention',
        'QuantMultiScaleDeformableAttention',
    ),
    'segment_anything.modeling.image_encoder.Attention': (
        f'{_MODULES}.sam_attention',
        'QuantSamEncoderAttention',
    ),
    'taskptq.testing.sam_models.TinyRelativeAttention': (
        f'{_MODULES}.sam_attention',
        'QuantSamEncoderAttention',
    ),
    'segment_anything.modeling.transformer.Attention': (
        f'{_MODULES}.sam_attention',
        'QuantSamDecoderAttention',
    ),
    'taskptq.testing.sam_models.TinyTokenAttention': (
        f'{_MODULES}.sam_attention',
        'QuantSamDecoderAttention',
    ),
}

# Convolutions that standardize their weight at each call; with that weight
# stored, each is the class given here.
COMPUTED_WEIGHTS: dict[str, type[nn.Module]] = {
    'mmcv.cnn.bricks.conv_ws.ConvWS2d': nn.Conv2d,
    'mmcv.cnn.bricks.conv_ws.ConvAWS2d': nn.Conv2d,
}

# Norms with a forward of their own that is BatchNorm's in eval mode.
NORMS: frozenset[str] = frozenset({'mmcv.ops.sync_bn.SyncBatchNorm'})

# Classes whose forward calls norm i directly after conv i; a subclass counts
# as long as it has that forward.
CONV_NORM_CLASSES: frozenset[str] = frozenset(
    {
        'mmcv.cnn.resnet.BasicBlock',
        'mmcv.cnn.resnet.Bottleneck',
        'mmcv.cnn.resnet.ResNet',
        'mmdet.models.backbones.hrnet.HRNet',
        'mmdet.models.backbones.resnet.BasicBlock',
        'mmdet.models.backbones.resnet.Bottleneck',
        'mmdet.models.backbones.resnet.ResNet',
        'mmseg.models.backbones.hrnet.HRNet',
        'mmseg.models.backbones.resnet.BasicBlock',
        'mmseg.models.backbones.resnet.Bottleneck',
        'mmseg.models.backbones.resnet.ResNet',
        'taskptq.testing.models.TinyBlock',
        'torchvision.models.resnet.BasicBlock',
        'torchvision.models.resnet.Bottleneck',
        'torchvision.models.resnet.ResNet',
    }
)

# Classes that run a conv, its norm and an activation in a stated order.
CONV_MODULES: frozenset[str] = frozenset(
    {
        'mmcv.cnn.bricks.conv_module.ConvModule',
    }
)

_GATING = 'gates channels by an elementwise product, without a matmul'
_LEVELS = 'adds an embedding of its level to each token'
# Classes that stay float by design, with the reason.
KEPT_FLOAT: dict[str, str] = {
    'torch.nn.modules.sparse.Embedding': 'look-up table, no arithmetic',
    'mmdet.models.layers.se_layer.ChannelAttention': _GATING,
    'segment_anything.modeling.image_encoder.ImageEncoderViT': (
        'adds a positional table to the tokens'
    ),
    'mmdet.models.detectors.deformable_detr.DeformableDETR': _LEVELS,
    'mmdet.models.detectors.dino.DINO': _LEVELS,
    'mmseg.models.backbones.bisenetv1.AttentionRefinementModule': _GATING,
    'mmcv.ops.deform_conv.DeformConv2d': 'deformable conv: no counterpart',
    'mmcv.ops.modulated_deform_conv.ModulatedDeformConv2d': (
        'deformable conv: no counterpart'
    ),
    'mmcv.ops.modulated_deform_conv.ModulatedDeformConv2dPack': (
        'deformable conv: no counterpart'
    ),
    # Without weights; listed, since a box's precision hangs on it.
    'taskptq.methods.box_grid.box_grid.BoxGrid': (
        'box grid: softmax and expectation stay float'
    ),
}

# Reconstruction blocks, by class.
BLOCKS: frozenset[str] = frozenset(
    {
        'mmdet.models.backbones.resnet.BasicBlock',
        'mmdet.models.backbones.resnet.Bottleneck',
        'mmseg.models.backbones.resnet.BasicBlock',
        'mmseg.models.backbones.resnet.Bottleneck',
        'torchvision.models.resnet.BasicBlock',
        'torchvision.models.resnet.Bottleneck',
        'mmcv.cnn.bricks.conv_module.ConvModule',
        'mmcv.cnn.bricks.depthwise_separable_conv_module'
        '.DepthwiseSeparableConvModule',
        'mmdet.models.layers.csp_layer.CSPLayer',
        'mmdet.models.backbones.csp_darknet.Focus',
        'mmdet.models.backbones.csp_darknet.SPPBottleneck',
        'mmdet.models.layers.inverted_residual.InvertedResidual',
        'mmdet.models.layers.transformer.utils.PatchEmbed',
        'mmdet.models.layers.transformer.utils.PatchMerging',
        'mmseg.models.utils.embed.PatchEmbed',
        'mmseg.models.utils.embed.PatchMerging',
        'mmseg.models.utils.inverted_residual.InvertedResidual',
        'mmcv.cnn.bricks.transformer.PatchEmbed',
        'mmcv.cnn.bricks.transformer.PatchMerging',
        'mmcv.cnn.bricks.transformer.BaseTransformerLayer',
        'mmdet.models.backbones.pvt.PVTEncoderLayer',
        'mmdet.models.backbones.swin.SwinBlock',
        'mmseg.models.backbones.swin.SwinBlock',
        'mmseg.models.backbones.mit.TransformerEncoderLayer',
        'mmseg.models.backbones.vit.TransformerEncoderLayer',
        'mmdet.models.layers.transformer.detr_layers.DetrTransformerEncoderLayer',
        'mmdet.models.layers.transformer.detr_layers.DetrTransformerDecoderLayer',
        'mmdet.models.necks.fpn.FPN',
        'mmdet.models.necks.cspnext_pafpn.CSPNeXtPAFPN',
        'mmdet.models.necks.channel_mapper.ChannelMapper',
        'mmseg.models.necks.fpn.FPN',
        'mmdet.models.dense_heads.base_dense_head.BaseDenseHead',
        'mmdet.models.dense_heads.detr_head.DETRHead',
        'mmdet.models.roi_heads.bbox_heads.bbox_head.BBoxHead',
        'mmdet.models.roi_heads.mask_heads.fcn_mask_head.FCNMaskHead',
        'mmseg.models.decode_heads.decode_head.BaseDecodeHead',
        'torch.nn.modules.transformer.TransformerEncoderLayer',
        'torch.nn.modules.transformer.TransformerDecoderLayer',
        # PTQ4SAM reconstructs attention and MLP of an encoder block apart; as
        # one unit they are trained together, and each block takes over its
        # input from the one before instead of running the model up to it.
        'segment_anything.modeling.image_encoder.Block',
        'segment_anything.modeling.common.MLPBlock',
        'segment_anything.modeling.transformer.TwoWayAttentionBlock',
        'segment_anything.modeling.mask_decoder.MLP',
        'taskptq.testing.models.TinyBlock',
        'taskptq.testing.sam_models.TinyTwoWayBlock',
    }
)

# Units whose first axis holds independent rows, images or not: prompts of
# an image, windows. Elsewhere the axis of a token tensor may be the sequence.
ROW_MODULES: frozenset[str] = frozenset(
    {
        'segment_anything.modeling.common.MLPBlock',
        'segment_anything.modeling.image_encoder.Attention',
        'segment_anything.modeling.image_encoder.Block',
        'segment_anything.modeling.mask_decoder.MLP',
        'segment_anything.modeling.transformer.Attention',
        'segment_anything.modeling.transformer.TwoWayAttentionBlock',
        'taskptq.testing.sam_models.TinyRelativeAttention',
        'taskptq.testing.sam_models.TinyTokenAttention',
        'taskptq.testing.sam_models.TinyTwoWayBlock',
    }
)

# Inputs that select rows and therefore differ between the float and the
# quantized model; captures replay the float model's (class -> argument).
REPLAYED_INPUTS: dict[str, str] = {
    'mmdet.models.roi_heads.roi_extractors.base_roi_extractor'
    '.BaseRoIExtractor': 'rois',
}

# Last layers of heads, by name: what they give is boxes, scores or masks.
OUTPUT_LAYERS: tuple[str, ...] = (
    r're:(.*\.)?(rpn|retina|atss|gfl|fcos|rtm)_(cls|reg|obj|centerness)'
    r'(\.\d+)?',
    r're:(.*\.)?(fc|conv)_(cls|reg|centerness|seg|logits)(\.\d+)?',
    r're:(.*\.)?multi_level_conv_(cls|reg|obj)\.\d+',
    r're:(.*\.)?linear_pred',
    r're:(.*\.)?(cls_embed|class_embed|fc_cls)',
    r're:(.*\.)?cls_branches\.\d+',
    # Centers of boxes, which the heads only shift. Conditional DETR's come of
    # its learned queries alone: an error there is in every image alike. In
    # DAB-DETR and DINO that network turns centers into positions.
    r're:(.*\.)?reference_points_fc',
    r're:(.*\.)?decoder\.ref_point_head\.layers\.\d+',
)
# Projections of attentions that read nothing but positions.
POSITION_LAYERS: tuple[str, ...] = (
    r're:(.*\.)?(qpos_proj|kpos_proj|qpos_sine_proj)',
)
# Last layer of small output networks: a sequence's highest index.
OUTPUT_SEQUENCES: tuple[str, ...] = (
    r're:(.*\.)?reg_branches\.\d+',
    r're:(.*\.)?cls_branches\.\d+',
    r're:(.*\.)?bbox_embed(\.layers)?',
    r're:(.*\.)?bbox_head\.fc_reg(\.layers)?',
    # Masks are products of hyper-network outputs and upscaled features.
    r're:(.*\.)?output_hypernetworks_mlps\.\d+\.layers',
    r're:(.*\.)?output_upscaling',
    r're:(.*\.)?iou_prediction_head\.layers',
)

# Parts that evaluation never calls: class of the owner ('' is any) -> names of
# its attributes. They stay float where calibration does not reach them.
TRAINING_ONLY: dict[str, tuple[str, ...]] = {
    '': (
        'auxiliary_head',
        'aux_head',
        'aux',
        'dn_query_generator',
        'teacher_model',
    ),
    'mmdet.models.dense_heads.ddq_detr_head.DDQDETRHead': (
        'aux_cls_branches',
        'aux_reg_branches',
    ),
    'mmdet.models.dense_heads.yolact_head.YOLACTProtonet': ('segm_branch',),
    'mmdet.models.detectors.semi_base.SemiBaseDetector': (
        'student',
        'teacher',
    ),
    'mmseg.models.decode_heads.ddr_head.DDRHead': ('aux_cls_seg',),
    'mmseg.models.decode_heads.pid_head.PIDHead': (
        'p_head',
        'd_head',
        'p_cls_seg',
        'd_cls_seg',
    ),
}


def dotted(cls: type) -> str:
    """Return ``module.QualifiedName`` of a class."""
    return f'{cls.__module__}.{cls.__qualname__}'


def plain_class(module: nn.Module) -> type[nn.Module]:
    """Return the class of a module once its weight is a plain parameter."""
    cls = type(module)
    if parametrize.is_parametrized(module):
        # torch puts a class of its own in front of the module's.
        cls = cls.__mro__[1]
    return COMPUTED_WEIGHTS.get(dotted(cls), cls)


def has_forward_of(module: nn.Module, names: frozenset[str]) -> bool:
    """Whether a module runs the very forward of a listed class."""
    if 'forward' in vars(module):
        return False
    cls = type(module)
    return any(
        dotted(base) in names and cls.forward is vars(base).get('forward')
        for base in cls.__mro__
    )


def lookup(module: nn.Module) -> type[QuantModule] | None:
    """Return the counterpart of a module's exact class, None if unmapped."""
    target = COUNTERPARTS.get(dotted(plain_class(module)))
    if target is None:
        return None
    implementation: type[QuantModule] = getattr(
        importlib.import_module(target[0]), target[1]
    )
    return implementation


def is_attention(module: nn.Module) -> bool:
    """Whether a module attends, by its counterpart or by its name."""
    counterpart = lookup(module)
    if counterpart is not None:
        return _is_attention_name(counterpart.__name__)
    return any(
        _is_attention_name(cls.__name__) for cls in type(module).__mro__
    )


def _is_attention_name(name: str) -> bool:
    return any(word in name for word in ('Attention', 'MSA', 'NonLocal'))


def is_a(module: nn.Module, names: frozenset[str]) -> bool:
    """Whether a class of the module's line of descent is listed."""
    return any(dotted(cls) in names for cls in type(module).__mro__)


def replayed_input(module: nn.Module) -> str | None:
    """Return the argument of a module that captures must replay."""
    for cls in type(module).__mro__:
        argument = REPLAYED_INPUTS.get(dotted(cls))
        if argument is not None:
            return argument
    return None
