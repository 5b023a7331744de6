"""Named head outputs, their weights, and their decoding."""

from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch import nn

from taskptq.engine.adapters import (
    Adapter,
    DenseDetectorAdapter,
    SegmentorAdapter,
    name_tensors,
)
from taskptq.engine.builder import build_adapter


def test_flatten_names_every_tensor():
    a, b, c = torch.zeros(1), torch.ones(1), torch.ones(2)
    named = dict(name_tensors(([a, b], {'mask': c}, None, 3)))
    assert list(named) == ['0.0', '0.1', '1.mask']
    assert named['1.mask'] is c
    assert dict(name_tensors(a)) == {'output': a}


def test_any_module_has_the_default_adapter():
    model = nn.Linear(3, 2)
    adapter = build_adapter(model)
    assert type(adapter) is Adapter
    heads = adapter.forward_heads(model, torch.ones(4, 3))
    assert heads['output'].shape == (4, 2)
    assert adapter.foreground_proxy(heads)['output'] == 1
    with pytest.raises(NotImplementedError, match='Linear'):
        adapter.decode(heads, [])


def test_forward_heads_of_a_base_model(tiny_config, float_checkpoint):
    import tiny_task

    model = tiny_task.TinyNet().eval()
    batch = {'inputs': [torch.ones(3, 8, 8)] * 2, 'labels': [0, 1]}
    heads = build_adapter(model).forward_heads(model, batch)
    predicted = model.test_step(batch)
    assert torch.equal(heads['output'][1], predicted[1]['logits'])


def test_own_adapter_is_found_along_the_mro(registry_guard):
    from taskptq.registry import ADAPTERS

    class Base(nn.Module):
        pass

    class Derived(Base):
        pass

    @ADAPTERS.register_module(name=f'{Base.__module__}.{Base.__qualname__}')
    class OwnAdapter(Adapter):
        pass

    assert type(build_adapter(Derived())) is OwnAdapter


@pytest.fixture(scope='module')
def retinanet():
    pytest.importorskip('mmdet')
    from mmengine.config import Config
    from mmengine.registry import MODELS, DefaultScope

    scopes = dict(DefaultScope._instance_dict)
    DefaultScope.get_instance('adapters', scope_name='mmdet')
    config = Config.fromfile(
        __file__.rsplit('/tests/', maxsplit=1)[0]
        + '/configs/retinanet/retinanet_r18-half_fpn_bccd.py'
    )
    model = MODELS.build(config.model).eval()
    with torch.no_grad():
        model.bbox_head.retina_cls.bias.fill_(-1.0)
    yield model
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(scopes)


def det_batch():
    from mmdet.structures import DetDataSample

    sample = DetDataSample(
        metainfo=dict(
            img_shape=(64, 96),
            ori_shape=(64, 96),
            scale_factor=(1.0, 1.0),
            img_id=0,
        )
    )
    return {
        'inputs': [torch.randint(0, 255, (3, 64, 96)).byte()],
        'data_samples': [sample],
    }


@torch.no_grad()
def test_dense_detector(retinanet):
    adapter = build_adapter(retinanet)
    assert type(adapter) is DenseDetectorAdapter
    batch = det_batch()
    heads = adapter.forward_heads(retinanet, batch)
    assert sorted(heads)[:5] == [f'0.{level}' for level in range(5)]
    proxy = adapter.foreground_proxy(heads)
    assert set(proxy) == set(heads)
    for name, head in heads.items():
        assert (proxy[name] * head).shape == head.shape
        assert proxy[name].shape[1] == 1
        assert 0 <= proxy[name].min() <= proxy[name].max() <= 1
    best = heads['0.3'].sigmoid().amax(dim=1, keepdim=True)
    assert torch.equal(proxy['1.3'], best)


@torch.no_grad()
def test_dense_detector_decodes_as_the_model_predicts(retinanet):
    adapter = build_adapter(retinanet)
    batch = det_batch()
    heads = adapter.forward_heads(retinanet, batch)
    metas = [
        dict(
            batch['data_samples'][0].metainfo,
            batch_input_shape=(64, 96),
            pad_shape=(64, 96),
        )
    ]
    decoded = adapter.decode(heads, metas)
    predicted = retinanet.test_step(batch)[0].pred_instances
    assert len(predicted) > 0
    assert torch.equal(decoded[0].bboxes, predicted.bboxes)
    assert torch.equal(decoded[0].scores, predicted.scores)


def test_segmentor_decodes_to_label_maps():
    adapter = SegmentorAdapter(nn.Identity())
    logits = torch.zeros(1, 3, 2, 2)
    logits[0, 1] = 1
    maps = adapter.decode({'output': logits}, [dict(ori_shape=(5, 7))])
    assert maps[0].shape == (5, 7)
    assert (maps[0] == 1).all()


def test_softmax_scores_leave_the_background_out():

    class Head(nn.Module):
        use_sigmoid_cls = False
        cls_out_channels = 3

    model = nn.Module()
    model.bbox_head = Head()
    scores = torch.zeros(1, 6, 1, 1)
    scores[0, 2] = scores[0, 5] = 10  # the background of both anchors
    best = DenseDetectorAdapter(model).class_probabilities(scores)
    assert best.shape == (1, 1, 1, 1)
    assert best < 1e-3


def test_logits_weigh_where_they_are_undecided():
    class Plain(Adapter):
        head_kinds: ClassVar = {'cls*': 'confidence', '*': 'regression'}

    heads = {
        'cls': torch.tensor([0.0, 10.0]),
        'box': torch.ones(2),
        'selected': torch.ones(2, dtype=torch.int64),
    }
    weights = Plain(nn.Identity()).output_weights(heads)
    assert set(weights) == {'cls', 'box'}
    assert weights['cls'][0] == 0.25
    assert weights['cls'][1] < 1e-4
    assert weights['box'] == 1


def test_pixels_weigh_where_their_class_is_undecided():
    logits = torch.zeros(1, 2, 1, 2)
    logits[0, 0, 0, 1] = 20
    adapter = SegmentorAdapter(nn.Identity())
    found = adapter.output_weights({'output': logits})['output']
    assert found[0, :, 0, 0].tolist() == [0.25, 0.25]
    assert found[0, :, 0, 1].max() < 1e-6
    one = adapter.output_weights({'output': torch.zeros(1, 1, 2, 2)})
    assert (one['output'] == 0.25).all()


def test_an_objectness_multiplies_scores():
    """The Fisher information of s = c o, against its definition."""
    head = SimpleNamespace(use_sigmoid_cls=True, cls_out_channels=3)
    adapter = DenseDetectorAdapter(SimpleNamespace(bbox_head=head))
    logits = {
        '0.0': torch.randn(1, 3, 2, 2, dtype=torch.float64),
        '1.0': torch.randn(1, 4, 2, 2, dtype=torch.float64),
        '2.0': torch.randn(1, 1, 2, 2, dtype=torch.float64),
    }
    weights = adapter.output_weights(logits)
    leaves = [logits[n].clone().requires_grad_() for n in ('0.0', '2.0')]
    s = leaves[0].sigmoid() * leaves[1].sigmoid()
    slope = torch.autograd.grad(s.sum(), leaves[0])[0]
    s = s.detach()
    expected = slope.square() / (s * (1 - s))
    torch.testing.assert_close(weights['0.0'], expected)
    slopes = [
        torch.autograd.grad(
            (leaves[0].sigmoid() * leaves[1].sigmoid())[:, i].sum(), leaves[1]
        )[0][:, 0]
        for i in range(3)
    ]
    of_factor = sum(
        slope.square() / (s[:, i] * (1 - s[:, i]))
        for i, slope in enumerate(slopes)
    )
    torch.testing.assert_close(weights['2.0'][:, 0], of_factor)
    torch.testing.assert_close(weights['1.0'], s.amax(1, keepdim=True))


def test_without_an_objectness_boxes_weigh_by_their_class():
    head = SimpleNamespace(use_sigmoid_cls=True, cls_out_channels=3)
    adapter = DenseDetectorAdapter(SimpleNamespace(bbox_head=head))
    logits = {'0.0': torch.zeros(1, 3, 2, 2), '1.0': torch.zeros(1, 4, 2, 2)}
    weights = adapter.output_weights(logits)
    assert (weights['0.0'] == 0.25).all()
    assert (weights['1.0'] == 0.5).all()
