"""Named outputs of detectors with grid heads, and losses on them."""

import copy
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmdet')

from taskptq.calibration import calibrate
from taskptq.engine.builder import build_adapter, build_loss, build_qconfig
from taskptq.engine.grid_adapters import (
    TwoStageAdapter,
    pack_regions,
    unpack_regions,
)
from taskptq.engine.pipeline import prepare_in_place, run_batch
from taskptq.reconstruction import ReconstructionConfig, reconstruct

PATH = Path(__file__).resolve().parents[1] / 'grid_configs.py'
FASTER = 'faster-rcnn_r18-half_{}_nuclei'
FCOS = 'fcos_r18-half_{}_nuclei'


@pytest.fixture(scope='module')
def small():
    """The helper module of the small detectors."""
    spec = importlib.util.spec_from_file_location('grid_configs', PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules['grid_configs'] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def built(small):
    """Build each detector once."""
    models = {}

    def build(name):
        if name not in models:
            models[name] = small.build(name).eval()
        return copy.deepcopy(models[name])

    return build


def metas_of(batch):
    return [dict(sample.metainfo) for sample in batch['data_samples']]


def test_regions_survive_packing():
    rois = torch.randn(7, 5) * 100
    packed = pack_regions(rois)
    assert not packed.is_floating_point()
    assert torch.equal(unpack_regions(packed), rois)
    assert unpack_regions(pack_regions(rois[:0])).shape == (0, 5)


@torch.no_grad()
@pytest.mark.parametrize('variant', ['plain', 'grid', 'grid-roi'])
def test_two_stage_outputs(small, built, variant):
    model = built(FASTER.format(variant))
    adapter = build_adapter(model)
    assert type(adapter) is TwoStageAdapter
    batch = small.noise_batch()
    heads = adapter.forward_heads(model, copy.deepcopy(batch))
    regions = len(heads['rois'])
    assert 0 < regions <= 2 * 20
    assert heads['cls'].shape == (regions, 2)
    assert heads['box'].shape == (regions, 4 if variant == 'plain' else 4 * 6)
    assert heads['rpn_box.0'].shape[1] == 6 * (
        4 * 11 if variant == 'grid' else 4
    )
    weights = adapter.foreground_proxy(heads)
    for name, head in heads.items():
        if head.is_floating_point():
            assert weights[name].expand_as(head).shape == head.shape
            assert 0 <= weights[name].min() <= weights[name].max() <= 1
    important = adapter.output_weights(heads)
    assert set(important) == set(heads) - {'rois'}
    assert 0 < important['cls'].max() <= 0.25
    boxes = adapter.box_distributions(heads)
    wanted = {
        'plain': set(),
        'grid-roi': {'box'},
        'grid': {'box', *(f'rpn_box.{i}' for i in range(4))},
    }
    assert set(boxes) == wanted[variant]
    if variant != 'plain':
        assert boxes['box'].shape == (regions, 1, 4, 6)
        expected = model.roi_head.bbox_head.bbox_coder.expectation(
            heads['box']
        )
        found = model.roi_head.bbox_head.box_grid(boxes['box'])
        torch.testing.assert_close(found.flatten(1), expected)


@torch.no_grad()
@pytest.mark.parametrize('variant', ['plain', 'grid'])
def test_two_stage_decodes_as_the_model_predicts(small, built, variant):
    model = built(FASTER.format(variant))
    adapter = build_adapter(model)
    batch = small.noise_batch()
    heads = adapter.forward_heads(model, copy.deepcopy(batch))
    decoded = adapter.decode(heads, metas_of(batch))
    predicted = model.test_step(copy.deepcopy(batch))
    assert sum(len(one) for one in decoded) > 0
    for one, other in zip(decoded, predicted, strict=True):
        torch.testing.assert_close(one.bboxes, other.pred_instances.bboxes)
        torch.testing.assert_close(one.scores, other.pred_instances.scores)


@torch.no_grad()
def test_another_model_sees_the_same_regions(small, built):
    model = built(FASTER.format('grid'))
    adapter = build_adapter(model)
    batch = small.noise_batch()
    heads = adapter.forward_heads(model, copy.deepcopy(batch))
    same = adapter.forward_like(model, copy.deepcopy(batch), heads=heads)
    for name, head in heads.items():
        assert torch.equal(same[name], head), name
    other = copy.deepcopy(model)
    other.rpn_head.rpn_cls.weight.neg_()
    own = adapter.forward_heads(other, copy.deepcopy(batch))
    like = adapter.forward_like(other, copy.deepcopy(batch), heads=heads)
    assert torch.equal(like['rois'], heads['rois'])
    assert not torch.equal(own['rois'], heads['rois'])
    assert not torch.equal(like['rpn_cls.0'], heads['rpn_cls.0'])


@torch.no_grad()
def test_dense_outputs(small, built):
    model = built(FCOS.format('grid'))
    adapter = build_adapter(model)
    batch = small.noise_batch()
    heads = adapter.forward_heads(model, copy.deepcopy(batch))
    boxes = adapter.box_distributions(heads)
    assert set(boxes) == {f'1.{level}' for level in range(4)}
    assert boxes['1.0'].shape == (2, 1, 16, 16, 4, 17)
    plain = built(FCOS.format('plain'))
    assert build_adapter(plain).box_distributions(heads) == {}


def test_stages_that_refine_their_regions_are_refused():
    model = torch.nn.Module()
    model.roi_head = torch.nn.Module()
    model.roi_head.bbox_head = torch.nn.ModuleList([torch.nn.Identity()])
    with pytest.raises(NotImplementedError, match='single box head'):
        TwoStageAdapter(model).forward_heads(model, {})


@pytest.mark.parametrize('name', [FASTER.format('grid'), FCOS.format('grid')])
def test_network_steps_lower_the_divergence(small, built, name):
    model = built(name)
    batches = [small.noise_batch()]
    adapter = build_adapter(model)
    prepare_in_place(
        model,
        build_qconfig(
            dict(
                weight=dict(num_bits=3, symmetric=False),
                activation=dict(type='LSQQuantizer', num_bits=4),
                edge_bits=None,
            )
        ),
    )
    calibrate(model, batches, forward=run_batch)
    config = ReconstructionConfig(
        scope='network',
        rounding='nearest',
        steps=15,
        drop_prob=0.0,
        skip_below=0.0,
        scale_lr=0.02,
    )
    torch.manual_seed(0)
    report = reconstruct(
        model,
        batches,
        config,
        forward=run_batch,
        adapter=adapter,
        loss=build_loss(dict(type='ForegroundKLLoss')),
        progress=False,
    )
    (unit,) = report.units
    assert unit.loss_end < unit.loss_start
