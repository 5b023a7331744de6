"""Splitting into reconstruction units."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from taskptq.modules import quant_modules
from taskptq.prepare import QConfig, prepare, split_blocks
from taskptq.testing import tiny_model

BN = {'type': 'BN'}


def units_of(model: nn.Module, **kwargs: object) -> dict[str, str]:
    model.eval()  # some hosts' eval() returns nothing
    prepare(model, QConfig.from_dict({}))
    units = split_blocks(model, **kwargs)
    held = [name for unit in units for name, _ in unit.layers()]
    assert len(held) == len(set(held))
    if 'callable_names' not in kwargs:
        assert set(held) == {name for name, _ in quant_modules(model)}
    return {unit.name: type(unit.module).__name__ for unit in units}


def test_tiny_blocks_and_single_layers() -> None:
    assert list(units_of(tiny_model('conv'))) == [
        'stem',
        'layer1',
        'layer2',
        'head',
    ]


def test_layers() -> None:
    found = units_of(tiny_model('conv'), scope='layer')
    assert list(found)[:3] == ['stem', 'layer1.conv1', 'layer1.conv2']
    assert set(found.values()) == {'QuantConv2d', 'QuantLinear'}


def test_attention_is_one_layer_with_its_projections() -> None:
    model = tiny_model('window')
    prepare(model, QConfig.from_dict({}))
    by_name = {u.name: u for u in split_blocks(model, scope='layer')}
    assert list(by_name) == ['embed', 'attn', 'fc1', 'fc2', 'head']
    assert [name for name, _ in by_name['attn'].layers()] == [
        'attn',
        'attn.qkv',
        'attn.proj',
    ]


def test_network() -> None:
    model = tiny_model('conv')
    prepare(model, QConfig.from_dict({}))
    (unit,) = split_blocks(model, scope='network')
    assert unit.name == ''
    assert unit.module is model
    assert unit.layers() == quant_modules(model)


def test_encoder_layers_are_blocks() -> None:
    assert list(units_of(tiny_model('transformer'))) == [
        'embed',
        'layers.0',
        'layers.1',
        'head',
    ]


def test_block_that_is_never_called_is_split() -> None:
    called = {'', 'stem', 'layer1', 'layer2.conv1', 'layer2.conv2', 'head'}
    found = units_of(tiny_model('conv'), callable_names=called)
    assert list(found) == [
        'stem',
        'layer1',
        'layer2.conv1',
        'layer2.conv2',
        'head',
    ]


def test_user_blocks_win_over_what_they_hold() -> None:
    model = nn.Sequential(
        nn.Sequential(tiny_model('conv'), nn.Linear(5, 5)), nn.Linear(5, 5)
    )
    assert list(units_of(model, extra=['0'])) == ['0', '1']


def test_user_block_that_matches_nothing() -> None:
    model = tiny_model('conv')
    prepare(model, QConfig.from_dict({}))
    with pytest.raises(ValueError, match=r'reconstruction\.blocks.*nowhere'):
        split_blocks(model, extra=['nowhere'])


def test_unknown_scope() -> None:
    with pytest.raises(ValueError, match="scope='stage'"):
        split_blocks(tiny_model('conv'), scope='stage')


def test_block_without_quantized_layers_is_no_unit() -> None:
    model = tiny_model('conv')
    prepare(model, QConfig.from_dict({'keep_float': ['layer1.*']}))
    names = [unit.name for unit in split_blocks(model)]
    assert names == ['stem', 'layer2', 'head']


def test_shared_layer_belongs_to_the_first_unit() -> None:
    model = nn.Module()
    conv = nn.Conv2d(3, 3, 1)
    model.a, model.b = nn.Sequential(conv), nn.Sequential(conv)
    assert units_of(model) == {'a.0': 'QuantConv2d'}


def mmdet(path: str) -> object:
    module, _, name = path.rpartition('.')
    return getattr(pytest.importorskip(f'mmdet.models.{module}'), name)


def kinds(model: nn.Module) -> set[str]:
    return set(units_of(nn.Sequential(model)).values())


def test_resnet() -> None:
    model = mmdet('backbones.resnet.ResNet')(depth=50, base_channels=8)
    assert list(units_of(model))[:2] == ['conv1', 'layer1.0']
    assert len(split_blocks(model)) == 1 + 3 + 4 + 6 + 3


def test_csp_backbone() -> None:
    model = mmdet('backbones.cspnext.CSPNeXt')(
        deepen_factor=0.34,
        widen_factor=0.125,
        norm_cfg=BN,
        act_cfg={'type': 'ReLU'},
    )
    assert kinds(model) == {'ConvModule', 'CSPLayer', 'SPPBottleneck'}


def test_conv_module_and_separable_one() -> None:
    bricks = pytest.importorskip('mmcv.cnn')
    assert kinds(bricks.ConvModule(3, 4, 3, norm_cfg=BN)) == {'ConvModule'}
    assert kinds(bricks.DepthwiseSeparableConvModule(3, 4, 3)) == {
        'DepthwiseSeparableConvModule'
    }


@pytest.mark.parametrize('host', ['mmdet', 'mmseg'])
def test_swin(host: str) -> None:
    swin = pytest.importorskip(f'{host}.models.backbones.swin')
    model = swin.SwinTransformer(
        embed_dims=8,
        depths=(2, 1),
        num_heads=(1, 2),
        strides=(4, 2),
        out_indices=(0, 1),
    )
    assert units_of(model) == {
        'patch_embed': 'PatchEmbed',
        'stages.0.blocks.0': 'SwinBlock',
        'stages.0.blocks.1': 'SwinBlock',
        'stages.0.downsample': 'PatchMerging',
        'stages.1.blocks.0': 'SwinBlock',
    }


def test_mix_transformer() -> None:
    mit = pytest.importorskip('mmseg.models.backbones.mit')
    model = mit.MixVisionTransformer(
        embed_dims=8,
        num_stages=2,
        num_layers=[1, 1],
        num_heads=[1, 2],
        patch_sizes=[7, 3],
        strides=[4, 2],
        sr_ratios=[4, 1],
        out_indices=(0, 1),
    )
    assert units_of(model) == {
        'layers.0.0': 'PatchEmbed',
        'layers.0.1.0': 'TransformerEncoderLayer',
        'layers.1.0': 'PatchEmbed',
        'layers.1.1.0': 'TransformerEncoderLayer',
    }


def test_context_guided_blocks() -> None:
    cgnet = pytest.importorskip('mmseg.models.backbones.cgnet')
    model = cgnet.CGNet(
        num_channels=(8, 8, 8),
        num_blocks=(2, 1),
        dilations=(2, 4),
        reductions=(2, 2),
    )
    found = units_of(model)
    stem = [name for name in found if name.startswith('stem')]
    assert {name: found[name] for name in found if name not in stem} == {
        'level1.0': 'ContextGuidedBlock',
        'level1.1': 'ContextGuidedBlock',
        'level2.0': 'ContextGuidedBlock',
    }


def test_detr_layers() -> None:
    attention = {'embed_dims': 8, 'num_heads': 2}
    ffn = {'embed_dims': 8, 'feedforward_channels': 16}
    encoder = mmdet(
        'layers.transformer.detr_layers.DetrTransformerEncoderLayer'
    )
    decoder = mmdet(
        'layers.transformer.detr_layers.DetrTransformerDecoderLayer'
    )
    model = nn.Sequential(
        encoder(self_attn_cfg=attention, ffn_cfg=ffn),
        decoder(
            self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=ffn
        ),
    )
    assert units_of(model) == {
        '0': 'DetrTransformerEncoderLayer',
        '1': 'DetrTransformerDecoderLayer',
    }


@pytest.fixture
def detector_scope() -> Iterator[None]:
    """Build what heads name in mmdet, whatever ran before."""
    registry = pytest.importorskip('mmengine.registry')
    with registry.DefaultScope.overwrite_default_scope('mmdet'):
        yield


@pytest.mark.usefixtures('detector_scope')
def test_necks_and_heads() -> None:
    neck = mmdet('necks.fpn.FPN')([8, 16], 8, num_outs=3)
    assert kinds(neck) == {'FPN'}
    head = mmdet('dense_heads.retina_head.RetinaHead')(
        num_classes=2, in_channels=8, feat_channels=8
    )
    assert kinds(head) == {'RetinaHead'}
    box = mmdet('roi_heads.bbox_heads.Shared2FCBBoxHead')(
        in_channels=8, fc_out_channels=8, num_classes=2
    )
    assert kinds(box) == {'Shared2FCBBoxHead'}
    mask = mmdet('roi_heads.mask_heads.fcn_mask_head.FCNMaskHead')(
        in_channels=8, conv_out_channels=8, num_classes=2
    )
    assert kinds(mask) == {'FCNMaskHead'}


def test_units_are_modules_of_the_model() -> None:
    model = tiny_model('transformer')
    prepare(model, QConfig.from_dict({}))
    x = torch.randn(1, 3, 16, 16)
    seen: list[nn.Module] = []
    for unit in split_blocks(model):
        assert model.get_submodule(unit.name) is unit.module
        unit.module.register_forward_hook(
            lambda module, args, output: seen.append(module)
        )
    with torch.no_grad():
        model(x)
    assert seen == [unit.module for unit in split_blocks(model)]
