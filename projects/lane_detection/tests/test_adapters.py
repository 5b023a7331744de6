"""Network-wise objectives on lane detectors: heads, seeds, configs."""

import pytest
import torch
from mmengine.model import BaseModule
from torch import nn

from lane_detection.adapters import CHANNEL_DIMS, LaneAdapter
from lane_detection.models import (
    BezierLaneHead,
    CondLaneHead,
    GANetHead,
    LaneATTHead,
    LaneDetector,
)
from taskptq.calibration import calibrate
from taskptq.core.switches import quantizing
from taskptq.engine.builder import build_adapter, build_loss
from taskptq.engine.recipe import Recipe
from taskptq.methods.selective_focus import SelectiveFocusLoss
from taskptq.methods.selective_focus.decoded_distance import LaneDistance
from taskptq.methods.selective_focus.semantic_focus import (
    SemanticFocus,
    channel_dims,
)
from taskptq.prepare import QConfig, prepare
from taskptq.recipes import method_names, resolve
from taskptq.reconstruction import ReconstructionConfig, reconstruct
from taskptq.reconstruction.image_variety import vary_images
from taskptq.reconstruction.network import NetworkData

METHODS = {
    'minmax': None,
    'mse': None,
    'aciq': None,
    'adaround': 'layer',
    'brecq': 'block',
    'qdrop': 'block',
    'network-uniform': 'network',
    'sgf': 'network',
    'sas': 'network',
    'selective-focus': 'network',
    'regression-focus': 'network',
    'qdrop-selective-focus': 'block',
    'qdrop-network-uniform': 'block',
    'qdrop-regression-focus': 'block',
    'agq': None,
    'equalization': None,
    'ours-s': None,
    'ours': 'block',
    'qdrop-ours-s': 'block',
    'gptq-decoder': 'block',
    'fqm': 'block',
    'da': 'block',
    'drd': 'block',
    'gptq-decoder-distortion': 'block',
    'network-uniform-fixed': 'network',
    'qdrop-network-uniform-fixed': 'block',
    'qdrop-selective-focus-fixed': 'block',
    'ours-fixed': 'block',
    'qdrop-selective-focus-decoded': 'block',
    'qdrop-selective-focus-lds': 'block',
}
EQUALIZED = {'equalization', 'ours-s', 'ours', 'ours-fixed', 'qdrop-ours-s'}
LADDER = ((8, 8), (6, 6), (4, 8), (4, 4), (3, 3), (2, 4))
SIZE = (64, 128)


class Pyramid(BaseModule):
    """Maps at strides 8, 16 and 32."""

    def __init__(self, strides):
        super().__init__()
        self.strides = strides
        self.stem = nn.Conv2d(3, 16, 8, stride=8)
        self.convs = nn.ModuleList(
            nn.Conv2d(16, 16, 3, stride=2, padding=1) for _ in range(2)
        )

    def forward(self, x):
        maps = [self.stem(x).relu()]
        for conv in self.convs:
            maps.append(conv(maps[-1]).relu())
        return [
            m
            for m, s in zip(maps, (8, 16, 32), strict=True)
            if s in self.strides
        ]


HEADS = {
    'ganet': (dict(type='GANetHead', in_channels=16), (8,)),
    'condlane': (
        dict(
            type='CondLaneHead',
            in_channels=16,
            num_seeds=3,
            mask_channels=8,
            img_size=SIZE,
        ),
        (8, 16),
    ),
    'laneatt': (
        dict(
            type='LaneATTHead',
            in_channels=16,
            img_size=SIZE,
            feat_channels=8,
            num_side=6,
            num_bottom=8,
        ),
        (32,),
    ),
}


def make(name):
    head, strides = HEADS[name]
    return LaneDetector(
        dict(type=Pyramid, strides=strides),
        head=head,
        data_preprocessor=dict(type='LaneDataPreprocessor'),
    ).eval()


def make_batch(count=2):
    meta = dict(
        crop=(0, 0, 4 * SIZE[1], 4 * SIZE[0]),
        img_shape=SIZE,
        ori_shape=(4 * SIZE[0], 4 * SIZE[1]),
    )
    return {
        'inputs': [torch.rand(3, *SIZE) for _ in range(count)],
        'data_samples': [Meta(meta) for _ in range(count)],
    }


class Meta:
    """A sample of metainfo alone."""

    def __init__(self, metainfo):
        self.metainfo = metainfo

    def to(self, *args, **kwargs):
        return self


@pytest.mark.parametrize('name', HEADS)
@torch.no_grad()
def test_heads_weights_and_lanes(name):
    model = make(name)
    adapter = build_adapter(model)
    assert type(adapter) is LaneAdapter
    batch = make_batch()
    heads = adapter.forward_heads(model, batch)
    names = [k for k, v in heads.items() if v.is_floating_point()]
    assert tuple(names) == model.head_names
    weights = SemanticFocus().weights(heads, adapter=adapter)
    for head in names:
        assert weights[head].expand_as(heads[head]).min() >= 0
    metas = [sample.metainfo for sample in batch['data_samples']]
    decoded = adapter.decode(heads, metas)
    assert len(decoded) == 2
    assert LaneDistance()(decoded, decoded, metas) == [0, 0]
    assert adapter.disagreement(heads, heads, metas) == [0, 0]
    near = adapter.decoded_proxy(heads, metas)
    for head in names:
        weight = near[head].expand_as(heads[head])
        assert 0 <= weight.min() <= weight.max() <= 1
    kinds = {
        head: SemanticFocus().kind_of(head, adapter=adapter) for head in names
    }
    assert kinds[names[0]] == 'confidence'
    assert 'regression' in kinds.values()


@torch.no_grad()
def test_conditional_heads_follow_the_float_seeds():
    model = make('condlane')
    adapter = build_adapter(model)
    one, two = make_batch(), make_batch()
    heads = adapter.forward_heads(model, one)
    free = adapter.forward_heads(model, two)
    assert not torch.equal(free['seeds'], heads['seeds'])
    like = adapter.forward_like(model, two, heads=heads)
    assert torch.equal(like['seeds'], heads['seeds'])
    assert torch.equal(like['hm'], free['hm'])
    assert not torch.equal(like['mask'], free['mask'])
    assert channel_dims('reg', heads['reg'], adapter=adapter) == ()
    assert channel_dims('range', heads['range'], adapter=adapter) == (2,)
    assert channel_dims('params', heads['params'], adapter=adapter) == (1,)


@torch.no_grad()
def test_lines_of_heads_whose_queries_are_lanes():
    lines = {}
    for name in HEADS:
        model = make(name)
        adapter = build_adapter(model)
        heads = adapter.forward_heads(model, make_batch())
        if model.head.soft_lines(heads) is not None:
            lines[name] = adapter.soft_lines(heads)
            continue
        with pytest.raises(ValueError, match='no queries that are lines'):
            adapter.soft_lines(heads)
    assert set(lines) == {'laneatt'}
    for rows, presence in lines.values():
        assert rows.shape[:2] == presence.shape[:2]
        assert 0 <= presence.min() <= presence.max() <= 1


def test_channel_dims_name_heads_that_exist():
    classes = {
        c.__name__: c
        for c in (BezierLaneHead, CondLaneHead, GANetHead, LaneATTHead)
    }
    for name, dims in CHANNEL_DIMS.items():
        assert set(dims) <= set(classes[name].head_names)


@pytest.mark.parametrize('name', HEADS)
def test_selective_focus_end_to_end(name):
    model, batches = make(name), [make_batch(), make_batch()]
    prepare(
        model,
        QConfig.from_dict(
            dict(
                weight=dict(num_bits=3, symmetric=False),
                activation=dict(type='LSQQuantizer', num_bits=4),
            )
        ),
    )
    adapter = build_adapter(model)

    def forward(model, batch):
        return adapter.forward_heads(model, batch)

    calibrate(model, batches, forward=forward)
    data = NetworkData(model, batches, adapter)
    with torch.no_grad(), quantizing(model):
        quant = data.run(0)
    assert any(
        not torch.equal(quant[k], v) for k, v in data.targets[0].items()
    )
    loss = SelectiveFocusLoss(
        num_images=2,
        normalize='channel',
        update_interval=2,
        refresh_interval=4,
    )
    config = ReconstructionConfig(scope='network', steps=6, skip_below=0.0)
    report = reconstruct(
        model,
        batches,
        config,
        forward=forward,
        loss=loss,
        adapter=adapter,
        progress=False,
    )
    assert [e['step'] for e in report.loss['heads']] == [0, 2, 4]
    assert set(loss.weights) == set(model.head_names)
    assert report.units[0].loss_end > 0


@pytest.mark.parametrize('name', HEADS)
@pytest.mark.parametrize('kind', ['uint8', 'float'])
def test_varied_roads_keep_shape_and_range(name, kind):
    """The float model labels zoomed and mirrored roads anew."""
    batch = make_batch()
    if kind == 'uint8':
        batch['inputs'] = [
            (255 * image).to(torch.uint8) for image in batch['inputs']
        ]
    torch.manual_seed(0)
    varied = vary_images(batch, strength=0.35)
    assert varied['data_samples'] is batch['data_samples']
    for before, after in zip(batch['inputs'], varied['inputs'], strict=True):
        assert (after.shape, after.dtype) == (before.shape, before.dtype)
        assert before.min() <= after.min() <= after.max() <= before.max()
        assert not torch.equal(before, after)
    model = make(name)
    adapter = build_adapter(model)
    data = NetworkData(model, [batch], adapter, variety=0.35)
    drawn = data.draw()
    for key, head in drawn.target.items():
        assert head.shape == data.targets[0][key].shape
    assert any(
        not torch.equal(head, data.targets[0][key])
        for key, head in drawn.target.items()
    )
    metas = [sample.metainfo for sample in batch['data_samples']]
    assert len(adapter.decode(drawn.target, metas)) == 2


@pytest.mark.parametrize('focus', ['soft', 'decoded'])
def test_selective_focus_on_varied_roads(focus):
    torch.manual_seed(0)
    model, batches = make('laneatt'), [make_batch(), make_batch()]
    settings = dict(
        weight=dict(num_bits=3, symmetric=False),
        activation=dict(type='LSQQuantizer', num_bits=4),
    )
    prepare(model, QConfig.from_dict(settings))
    adapter = build_adapter(model)

    def forward(model, batch):
        return adapter.forward_heads(model, batch)

    calibrate(model, batches, forward=forward)
    config = ReconstructionConfig(
        scope='network', steps=4, skip_below=0.0, vary_images=0.35
    )
    report = reconstruct(
        model,
        batches,
        config,
        forward=forward,
        loss=SelectiveFocusLoss(num_images=2, focus=focus),
        adapter=adapter,
        progress=False,
    )
    assert 0 < report.units[0].loss_end < float('inf')


def test_every_own_method_is_named_here():
    assert set(METHODS) >= set(method_names('lane_detection'))


@pytest.mark.parametrize('method', ['ours-s', 'qdrop-ours-s', 'ours'])
def test_ours_stand_on_the_same_ground(method):
    recipe, ground = (
        resolve(f'lane_detection::w4a4_{name}') for name in (method, 'ours-s')
    )
    for key in ('softmax', 'edges'):
        assert recipe['qconfig'][key] == ground['qconfig'][key]
    assert recipe['rewrites'] == ground['rewrites']


@pytest.mark.parametrize(('weight', 'activation'), LADDER)
@pytest.mark.parametrize('method', METHODS)
def test_recipe(method, weight, activation):
    parts = resolve(f'lane_detection::w{weight}a{activation}_{method}')
    rewrites = parts.pop('rewrites', [])
    assert [rewrite['type'] for rewrite in rewrites] == (
        ['CrossLayerEqualization'] if method in EQUALIZED else []
    )
    assert set(parts) == {'qconfig', 'reconstruction'}
    recipe = Recipe.from_config(**{'rewrites': rewrites, **parts})
    points = recipe.qconfig.points
    bits = points['weight']['num_bits'], points['activation']['num_bits']
    assert bits == (weight, activation)
    # 2 and 3 bit weights need their zero point, in every row.
    assert not points['weight']['symmetric'] or weight > 3
    if METHODS[method] is None:
        assert recipe.reconstruction is None
        return
    settings = ReconstructionConfig.from_dict(recipe.reconstruction)
    assert settings.scope == METHODS[method]
    focused = {
        'sgf': ('soft', None),
        'sas': (None, 'threshold'),
        'network-uniform': (None, None),
        'regression-focus': ('soft', None),
        'selective-focus-decoded': ('decoded', 'threshold'),
    }
    if settings.scope == 'network' or settings.network_steps:
        loss = build_loss(recipe.loss)
        if loss.by_query:
            assert settings.network_train
            assert settings.of_network().keep_better
            return
        if hasattr(loss, 'focus'):
            found = loss.focus.focus, loss.selection.selection
            assert found == focused.get(
                method.removeprefix('qdrop-').removesuffix('-fixed'),
                ('soft', 'threshold'),
            )
        if settings.scope != 'network':
            settings = settings.of_network()
        assert settings.straight_through
        fixed = method.endswith(('-fixed', '-decoded', '-lds'))
        assert settings.learn_scales != fixed
        assert settings.keep_better == fixed
    else:
        assert recipe.loss is None
