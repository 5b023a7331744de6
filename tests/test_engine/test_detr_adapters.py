"""Adapters of mmdet's DETR family on tiny random detectors."""

import copy

import pytest
import torch
from torch import nn

pytest.importorskip('mmdet')
pytest.importorskip('mmcv.ops')

from taskptq.calibration import calibrate
from taskptq.core.switches import (
    dropping,
    float_only,
    is_weight_quantizer,
    quantizers,
    quantizing,
)
from taskptq.engine.builder import build_adapter, build_loss
from taskptq.engine.detr_adapters import (
    DeformableDetrAdapter,
    DetrAdapter,
    DinoAdapter,
    matching_queries,
    ranking,
)
from taskptq.engine.pipeline import run_batch
from taskptq.modules.base import quant_modules
from taskptq.prepare import QConfig, prepare
from taskptq.reconstruction import ReconstructionConfig, reconstruct
from taskptq.reconstruction.losses import ReconContext
from taskptq.reconstruction.network import NetworkData, trained_layers

QUERIES, LAYERS, CLASSES = 11, 2, 3
SIZES = ((64, 96), (64, 80))  # the second image is padded


def attention(dims, **options):
    return dict(
        embed_dims=dims, num_heads=2, dropout=0.0, batch_first=True, **options
    )


def feed_forward(dims):
    return dict(
        embed_dims=dims,
        feedforward_channels=24,
        num_fcs=2,
        ffn_drop=0.0,
        act_cfg=dict(type='ReLU', inplace=True),
    )


def detector(kind, *, dims, decoder=None, head=None, levels=1, **options):
    """Config of a detector with a narrow ResNet and few tokens."""
    cross = attention(dims)
    deformable = levels > 1
    if deformable:
        cross = attention(dims, num_levels=levels, num_points=2)
    if kind in ('ConditionalDETR', 'DABDETR'):
        own = dict(
            embed_dims=dims, num_heads=2, attn_drop=0.0, cross_attn=False
        )
        cross = {**own, 'cross_attn': True}
    else:
        own = attention(dims)
    return dict(
        type=kind,
        num_queries=QUERIES,
        data_preprocessor=dict(
            type='DetDataPreprocessor',
            mean=[120.0] * 3,
            std=[60.0] * 3,
            pad_size_divisor=1,
        ),
        backbone=dict(
            type='ResNet',
            depth=18,
            base_channels=4,
            stem_channels=4,
            num_stages=4,
            out_indices=(2, 3) if deformable else (3,),
            norm_cfg=dict(type='BN'),
            norm_eval=True,
        ),
        neck=dict(
            type='ChannelMapper',
            kernel_size=1,
            out_channels=dims,
            in_channels=[16, 32] if deformable else [32],
            act_cfg=None,
            norm_cfg=dict(type='GN', num_groups=4),
            num_outs=levels,
        ),
        encoder=dict(
            num_layers=1,
            layer_cfg=dict(
                self_attn_cfg=attention(
                    dims,
                    **(
                        dict(num_levels=levels, num_points=2)
                        if deformable
                        else {}
                    ),
                ),
                ffn_cfg=feed_forward(dims),
            ),
        ),
        decoder=dict(
            num_layers=LAYERS,
            return_intermediate=True,
            layer_cfg=dict(
                self_attn_cfg=own,
                cross_attn_cfg=cross,
                ffn_cfg=feed_forward(dims),
            ),
            **(decoder or {}),
        ),
        positional_encoding=dict(num_feats=dims // 2, normalize=True),
        bbox_head=dict(
            num_classes=CLASSES,
            embed_dims=dims,
            **(
                {
                    'type': f'{kind}Head',
                    'loss_cls': dict(type='FocalLoss', use_sigmoid=True),
                }
                | (head or {})
            ),
        ),
        train_cfg=None,
        test_cfg=dict(max_per_img=7),
        **options,
    )


def config_of(name):
    if name == 'detr':
        return detector(
            'DETR',
            dims=16,
            head=dict(
                loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False)
            ),
        )
    if name == 'conditional':  # mmdet has 256 positional features
        return detector('ConditionalDETR', dims=256)
    if name == 'dab':
        return detector(
            'DABDETR',
            dims=16,
            decoder=dict(
                query_dim=4,
                query_scale_type='cond_elewise',
                with_modulated_hw_attn=True,
            ),
        )
    no_norm = dict(post_norm_cfg=None)
    if name == 'deformable':
        return detector(
            'DeformableDETR',
            dims=16,
            decoder=no_norm,
            levels=2,
            num_feature_levels=2,
        )
    if name == 'two-stage':  # its proposals have 512 positional features
        return detector(
            'DeformableDETR',
            dims=256,
            decoder=no_norm,
            levels=2,
            num_feature_levels=2,
            with_box_refine=True,
            as_two_stage=True,
        )
    return detector(
        'DINO',
        dims=16,
        decoder=no_norm,
        levels=2,
        num_feature_levels=2,
        with_box_refine=True,
        as_two_stage=True,
        dn_cfg=dict(
            label_noise_scale=0.5,
            box_noise_scale=1.0,
            group_cfg=dict(dynamic=True, num_groups=None, num_dn_queries=10),
        ),
    )


ADAPTERS = {
    'detr': DetrAdapter,
    'conditional': DetrAdapter,
    'dab': DetrAdapter,
    'deformable': DeformableDetrAdapter,
    'two-stage': DeformableDetrAdapter,
    'dino': DinoAdapter,
}
_BUILT = {}


@pytest.fixture
def build():
    """Return a fresh copy of a seeded random detector, in eval mode."""
    from mmengine.registry import MODELS, DefaultScope

    def make(name):
        if name not in _BUILT:
            with DefaultScope.overwrite_default_scope('mmdet'):
                torch.manual_seed(0)
                _BUILT[name] = MODELS.build(config_of(name)).eval()
            stir(_BUILT[name])
        return copy.deepcopy(_BUILT[name])

    return make


@torch.no_grad()
def stir(model):
    """Give every parameter noise: zeros would hide a mistake."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            parameter.copy_(noise / parameter[0].numel() ** 0.5)
        elif 'sampling' not in name:
            parameter.add_(0.1 * noise)


def batch_of(seed=0):
    from mmdet.structures import DetDataSample

    generator = torch.Generator().manual_seed(seed)
    images = [
        torch.randint(0, 255, (3, *size), generator=generator).byte()
        for size in SIZES
    ]
    samples = [
        DetDataSample(
            metainfo=dict(
                img_shape=size,
                ori_shape=size,
                scale_factor=(1.0, 1.0),
                img_id=number,
            )
        )
        for number, size in enumerate(SIZES)
    ]
    return {'inputs': images, 'data_samples': samples}


def metas_of(batch):
    return [dict(sample.metainfo) for sample in batch['data_samples']]


def quantized(model, batches, *, bits=4):
    qconfig = QConfig.from_dict(
        dict(
            weight=dict(num_bits=bits, symmetric=False),
            activation=dict(type='LSQQuantizer', num_bits=bits),
            edge_bits=None,
        )
    )
    prepare(model, qconfig)
    calibrate(model, batches, forward=run_batch)
    return model


NAMES = list(ADAPTERS)


@pytest.mark.parametrize('name', NAMES)
@torch.no_grad()
def test_decode_is_what_the_model_predicts(build, name):
    model, batch = build(name), batch_of()
    adapter = build_adapter(model)
    assert type(adapter) is ADAPTERS[name]
    heads = adapter.forward_heads(model, batch)
    decoded = adapter.decode(heads, metas_of(batch))
    predicted = model.test_step(batch_of())
    for mine, theirs in zip(decoded, predicted, strict=True):
        found = theirs.pred_instances
        assert len(found) == 7
        torch.testing.assert_close(mine.scores, found.scores)
        torch.testing.assert_close(mine.bboxes, found.bboxes)
        assert torch.equal(mine.labels, found.labels)
    proxy = adapter.foreground_proxy(heads)
    assert set(proxy) == set(heads)
    for key, head in heads.items():
        if key.partition('.')[0] in ('cls', 'box'):
            assert proxy[key].shape == (*head.shape[:2], 1)
            assert 0 < proxy[key].min() <= proxy[key].max() < 1
    last = f'cls.{LAYERS - 1}'
    if not adapter.use_sigmoid:
        best = heads[last].softmax(-1)[..., :-1].amax(-1, keepdim=True)
        assert torch.equal(proxy[last], best)


@pytest.mark.parametrize('name', NAMES)
@torch.no_grad()
def test_swapped_model_with_quantizers_off_is_the_float_one(build, name):
    model, batch = build(name), batch_of()
    adapter = build_adapter(model)
    expected = adapter.forward_heads(model, batch)
    # A float model has no place to read the co-attended features from.
    assert not [key for key in expected if 'attended' in key]
    swapped = quantized(model, [batch])
    with float_only(swapped):
        found = adapter.forward_heads(swapped, batch)
    assert set(expected) <= set(found)
    for key, head in expected.items():
        torch.testing.assert_close(found[key], head, atol=1e-4, rtol=1e-4)
    dims = swapped.embed_dims
    for layer in range(LAYERS):
        assert found[f'cls.{layer}'].shape[:2] == (2, QUERIES)
        assert found[f'box.{layer}'].shape == (2, QUERIES, 4)
        assert found[f'box.{layer}'].min() >= 0
        assert found[f'box.{layer}'].max() <= 1
        for kind in ('attended', 'self_attended'):
            assert found[f'{kind}.{layer}'].shape == (2, QUERIES, dims)
    with quantizing(swapped):
        other = adapter.forward_heads(swapped, batch)
    assert not torch.allclose(other['attended.0'], found['attended.0'])


@pytest.mark.parametrize('name', NAMES)
@torch.no_grad()
def test_attended_is_what_the_projection_reads(build, name):
    model, batch = build(name), batch_of()
    adapter = build_adapter(model)
    swapped = quantized(model, [batch])
    layer = swapped.decoder.layers[1]
    seen = {}

    def see(kind):
        return lambda module, args: seen.update({kind: args[0]})

    for kind, attention in (
        ('attended', layer.cross_attn),
        ('self_attended', layer.self_attn),
    ):
        [projection] = [
            module
            for child, module in attention.named_modules()
            if child.rpartition('.')[2] in ('out_proj', 'output_proj')
        ]
        projection.register_forward_pre_hook(see(kind))
    with quantizing(swapped):
        heads = adapter.forward_heads(swapped, batch)
    for kind, value in seen.items():
        found = heads[f'{kind}.1']
        if value.shape[0] == QUERIES:  # nn.MultiheadAttention: N x B x E
            value = value.transpose(0, 1)
        assert torch.equal(found, value)


@pytest.mark.parametrize('name', ['two-stage', 'dino'])
@torch.no_grad()
def test_selection_follows_the_float_model(build, name):
    model, batch = build(name), batch_of()
    adapter = build_adapter(model)
    swapped = quantized(model, [batch], bits=2)
    with float_only(swapped):
        target = adapter.forward_heads(swapped, batch)
        again = adapter.forward_like(swapped, batch, heads=target)
    for key, head in target.items():
        assert torch.equal(again[key], head)
    with quantizing(swapped):
        free = adapter.forward_heads(swapped, batch)
        bound = adapter.forward_like(swapped, batch, heads=target)
        own = adapter.forward_like(swapped, batch, heads=free)
    assert not torch.equal(free['selected'], target['selected'])
    assert torch.equal(bound['selected'], target['selected'])
    assert not torch.equal(bound['box.0'], free['box.0'])
    for key, head in free.items():
        assert torch.equal(own[key], head)
    # No hook stays behind.
    assert not any(m._forward_hooks for m in swapped.modules())


def test_ranking():
    selected = torch.tensor([[4, 0, 2]])
    scores = ranking(selected, like=torch.zeros(1, 6, 3))
    assert scores.shape == (1, 6, 3)
    assert scores[..., 0].topk(3).indices.tolist() == [[4, 0, 2]]
    assert scores.amax(-1).topk(3).indices.tolist() == [[4, 0, 2]]


def test_matching_queries():
    feature = torch.arange(10).view(1, 10, 1)
    kept = matching_queries(feature, num_queries=4)
    assert kept.flatten().tolist() == [6, 7, 8, 9]


def test_detectors_with_another_flow_are_refused(build):
    model, batch = build('dino'), batch_of()

    class OtherFlow(type(model)):
        def forward_transformer(self, *args, **kwargs):
            raise AssertionError

    class OtherSelection(type(model)):
        def pre_decoder(self, *args, **kwargs):
            raise AssertionError

    for cls, message in (
        (OtherFlow, 'its own forward_transformer'),
        (OtherSelection, 'its own pre_decoder'),
    ):
        model.__class__ = cls
        adapter = build_adapter(model)
        with pytest.raises(NotImplementedError, match=message):
            adapter.forward_heads(model, batch)


def codes_of(model):
    return {
        f'{name}:{slot}': module.codes(slot)
        for name, module in quant_modules(model)
        for slot, _ in module.active_slots()
    }


def scales_of(model):
    return {
        name: quantizer.scale.detach().clone()
        for name, quantizer in quantizers(model)
        if quantizer.calibrated and not is_weight_quantizer(name)
    }


@pytest.mark.parametrize('name', ['detr', 'dino'])
def test_decoder_wise_training(build, name):
    """Only the decoder and head learn; what is before them runs once."""
    batches = [batch_of(0), batch_of(1)]
    model = quantized(build(name), batches, bits=3)
    adapter = build_adapter(model)
    before, scales = codes_of(model), scales_of(model)
    calls = []
    model.backbone.register_forward_pre_hook(lambda *_: calls.append(1))
    loss = build_loss(
        dict(type='QueryDistillationLoss', layers='all', teacher_score_thr=0.0)
    )
    config = ReconstructionConfig.from_dict(
        dict(
            scope='network',
            steps=12,
            weight_lr=0.5,
            skip_below=0.0,
            network_train=['decoder*', 'bbox_head*'],
        )
    )
    report = reconstruct(
        model,
        batches,
        config,
        forward=run_batch,
        loss=loss,
        adapter=adapter,
        progress=False,
    )
    # Once for the float targets, once for the trunk.
    assert len(calls) == 2 * len(batches)
    after = codes_of(model)
    changed = {
        key.partition('.')[0]
        for key in before
        if not torch.equal(before[key], after[key])
    }
    assert changed == {'decoder', 'bbox_head'}
    changed = {
        key.partition('.')[0]
        for key, scale in scales_of(model).items()
        if not torch.equal(scale, scales[key])
    }
    assert changed == {'decoder', 'bbox_head'}
    assert report.loss['steps'] == 12
    assert report.loss['pairs_per_image'] > 0
    assert report.units[0].num_weights < sum(
        codes.numel() for codes in before.values()
    )


def test_trunk_is_that_of_the_quantized_model(build):
    from taskptq.reconstruction.capture.cache import ActivationCache

    batches = [batch_of(0), batch_of(1)]
    model = quantized(build('two-stage'), batches, bits=3)
    adapter = build_adapter(model)
    data = NetworkData(model, batches, adapter)
    expected = [data.run_quantized(number) for number in range(2)]
    # A budget of nothing: everything goes to disk and comes back.
    for budget in (0, 1 << 28):
        cache = ActivationCache(budget)
        layers = trained_layers(model, ['decoder*'])
        with quantizing(model), dropping(model, drop_prob=0.9):
            assert data.keep_trunks(layers, cache=cache)
        for number in range(2):
            found = data.run_quantized(number)
            for key, head in expected[number].items():
                assert torch.equal(found[key], head), key
        cache.close()
        data.trunks = []
    before = trained_layers(model, ['decoder*', 'encoder.layers.0.ffn*'])
    assert not data.keep_trunks(before, cache=ActivationCache(0))
    assert torch.equal(data.run_quantized(1)['box.1'], expected[1]['box.1'])
    with pytest.raises(ValueError, match=r"network_train: pattern 'decodr"):
        trained_layers(model, ['decodr*'])
    assert trained_layers(model, []) is None


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(network_train=['decoder*']), 'with network_steps'),
        (dict(network_train='decoder*', scope='network'), 'give a list'),
    ],
)
def test_network_train_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        ReconstructionConfig.from_dict(settings)


def test_a_teacher_from_a_config(build, tmp_path):
    """A float file of the same detector, tripled, is as good as oneself."""
    from mmengine.config import Config

    student = build('detr')
    config = tmp_path / 'teacher.py'
    Config(dict(default_scope='mmdet', model=config_of('detr'))).dump(config)
    checkpoint = tmp_path / 'teacher.pth'
    torch.save({'state_dict': student.state_dict()}, checkpoint)
    batches = [batch_of(0), batch_of(1)]
    model = quantized(student, batches)
    adapter = build_adapter(model)
    settings = dict(type='QueryDistillationLoss', teacher_score_thr=0.0)
    teacher = dict(config=str(config), checkpoint=str(checkpoint))
    loss = build_loss({**settings, 'teacher': teacher})
    assert loss.teacher_name == f'{config} {checkpoint}'
    data = NetworkData(model, batches, adapter)
    losses = {}
    for key, made in (('own', build_loss(settings)), ('other', loss)):
        made.begin(data.probe())
        torch.manual_seed(3)
        with quantizing(model):
            minibatch = data.draw()
            context = ReconContext(
                unit='',
                step=0,
                num_steps=1,
                adapter=adapter,
                image_ids=minibatch.image_ids,
            )
            losses[key] = made(
                minibatch.run(), minibatch.target, context
            ).item()
    assert losses['own'] > 0
    assert losses['other'] == pytest.approx(losses['own'], rel=1e-4)
    assert not any(p.requires_grad for p in loss.teacher.model.parameters())
    with pytest.raises(ValueError, match='give config and checkpoint'):
        build_loss({**settings, 'teacher': dict(config='a.py')})
    with pytest.raises(FileNotFoundError, match=r'no config file a\.py'):
        build_loss(
            {**settings, 'teacher': dict(config='a.py', checkpoint='b.pth')}
        )
    assert isinstance(loss.teacher.model, nn.Module)


def test_measuring_a_distillation_is_no_step(build):
    batches = [batch_of(0), batch_of(1)]
    model = quantized(build('detr'), batches, bits=3)
    data = NetworkData(model, batches, build_adapter(model))
    loss = build_loss(
        dict(type='QueryDistillationLoss', layers='all', teacher_score_thr=0.0)
    )
    loss.begin(data.probe())
    first = data.set_loss(loss, num_steps=5)
    assert first > 0
    assert data.set_loss(loss, num_steps=5) == first
    assert loss.report()['steps'] == 0
    context = ReconContext(
        unit='', step=0, num_steps=5, image_ids=(0, 1), adapter=data.adapter
    )
    loss(data.run_quantized(0), data.targets[0], context)
    assert loss.report()['steps'] == 1
    assert loss.report()['pairs_per_image'] > 0


@pytest.mark.parametrize('name', NAMES)
def test_only_what_is_decoded_has_weights(build, name):
    model, batch = build(name), batch_of()
    adapter = build_adapter(model)
    with torch.no_grad():
        heads = adapter.forward_heads(model, batch)
        weights = adapter.output_weights(heads)
    last = len(model.decoder.layers) - 1
    assert set(weights) == {f'cls.{last}', f'box.{last}'}
    assert weights[f'cls.{last}'].shape == heads[f'cls.{last}'].shape
    assert 0 < float(weights[f'cls.{last}'].max()) <= 0.25
