"""Views of whole models: detectors of both kinds, segmentors, DETRs."""

import copy

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet')
pytest.importorskip('mmcv.ops')

from tiny_detectors import build, detection_batch

from taskptq.qat.distillation import Distillation, DistillationConfig
from taskptq.qat.teacher import make_teacher


def losses(model, batch, views, *, noise=0.05, prepare=False):
    """Return the terms of views, and the gradient's norm of each."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - what mmdet's samplers use
    teacher = make_teacher(model)
    student = make_teacher(model).requires_grad_(True).train()
    for module in student.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    added = Distillation(
        student, teacher, config=DistillationConfig.from_dict({'views': views})
    )
    if prepare:
        assert added.wants_batches
        added.prepare([copy.deepcopy(batch)])
    data = student.data_preprocessor(copy.deepcopy(batch), True)
    added.attach()
    try:
        found = student(data['inputs'], data['data_samples'], mode='loss')
    finally:
        added.detach()
    own = student(data['inputs'], data['data_samples'], mode='loss')
    terms = {k: v for k, v in found.items() if k not in own}
    norms = {}
    for name, value in terms.items():
        student.zero_grad()
        if value.requires_grad:
            value.backward(retain_graph=True)
        norms[name] = sum(
            float(p.grad.square().sum())
            for p in student.parameters()
            if p.grad is not None
        )
    return {k: v.item() for k, v in terms.items()}, norms


LOW = dict(type='discrepancy', score_thr=0.0, max_boxes=8)
DETECTOR_VIEWS = [
    dict(taps='neck', loss='squared_feature'),
    dict(taps='neck', loss='gaussian_likelihood', regions=LOW),
    dict(taps='neck', loss='feature_distance', regions='annotations'),
    dict(taps='backbone', loss='gram'),
    dict(
        taps='neck',
        loss=dict(type='squared_feature', normalize=False),
        regions=dict(type='foreground', threshold=0.0),
        weights='entropy',
    ),
    dict(taps='neck', loss='projected_feature', weights='foreground'),
    dict(taps='logits', loss=dict(type='feature_divergence', kind='sigmoid')),
]
NAMES = [
    'loss_squared_feature',
    'loss_gaussian_likelihood',
    'loss_feature_distance',
    'loss_gram',
    'loss_squared_feature_more',
    'loss_projected_feature',
    'loss_feature_divergence',
]


@pytest.mark.parametrize('name', ['faster', 'retinanet'])
def test_detectors(name):
    model = build(name, {}).eval()
    views = copy.deepcopy(DETECTOR_VIEWS)
    if name == 'faster':
        # Its classes are of boxes that both models choose for themselves.
        views = views[:-1]
    found, norms = losses(model, detection_batch(), views, prepare=True)
    assert list(found) == NAMES[: len(views)]
    assert all(np.isfinite(value) for value in found.values())
    assert all(norm > 0 for norm in norms.values()), norms


def test_an_equal_student_loses_nothing():
    model = build('retinanet', {}).eval()
    views = [
        view
        for view in copy.deepcopy(DETECTOR_VIEWS)
        if view['loss'] not in ('gaussian_likelihood', 'projected_feature')
    ]
    found, _ = losses(model, detection_batch(), views, noise=0.0)
    assert all(abs(value) < 1e-5 for value in found.values()), found


def test_weight_scales_a_term():
    model = build('retinanet', {}).eval()
    one = [dict(taps='neck', loss='squared_feature')]
    three = [dict(one[0], weight=3.0)]
    batch = detection_batch()
    assert losses(model, batch, three)[0]['loss_squared_feature'] == (
        pytest.approx(3 * losses(model, batch, one)[0]['loss_squared_feature'])
    )


@pytest.fixture
def segmentor():
    pytest.importorskip('mmseg')
    from mmengine.config import ConfigDict
    from mmengine.registry import MODELS, DefaultScope

    settings = dict(
        type='EncoderDecoder',
        data_preprocessor=dict(type='SegDataPreProcessor', size=(64, 64)),
        backbone=dict(
            type='MixVisionTransformer',
            embed_dims=8,
            num_layers=[1, 1],
            num_heads=[1, 2],
            num_stages=2,
            patch_sizes=[7, 3],
            strides=[4, 2],
            sr_ratios=[4, 2],
            out_indices=(0, 1),
        ),
        decode_head=dict(
            type='SegformerHead',
            in_channels=[8, 16],
            in_index=[0, 1],
            channels=8,
            num_classes=4,
            norm_cfg=dict(type='BN'),
            align_corners=False,
            loss_decode=dict(type='CrossEntropyLoss'),
        ),
        test_cfg=dict(mode='whole'),
    )
    with DefaultScope.overwrite_default_scope('mmseg'):
        torch.manual_seed(0)
        model = MODELS.build(ConfigDict(settings)).eval()
    return model


def segmentation_batch():
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    generator = torch.Generator().manual_seed(0)
    inputs, samples = [], []
    for _ in range(2):
        inputs.append(
            torch.randint(0, 256, (3, 64, 64), generator=generator).byte()
        )
        sample = SegDataSample(
            metainfo=dict(img_shape=(64, 64), ori_shape=(64, 64))
        )
        labels = torch.randint(0, 4, (1, 64, 64), generator=generator)
        sample.gt_sem_seg = PixelData(data=labels)
        samples.append(sample)
    return {'inputs': inputs, 'data_samples': samples}


def test_segmentors(segmentor):
    views = [
        dict(taps='query_key', loss='gram'),
        dict(taps='attention', loss='ranking'),
        dict(taps='backbone', loss='squared_feature', regions='classes'),
        dict(taps='logits', loss='feature_divergence', weights='entropy'),
        dict(taps='attended', loss='projected_feature'),
    ]
    found, norms = losses(segmentor, segmentation_batch(), views, prepare=True)
    assert len(found) == 5
    assert all(norm > 0 for norm in norms.values()), norms
    assert all(value > 0 for value in found.values()), found


def test_models_must_fit_the_view(segmentor):
    views = [dict(taps='neck', loss='gram')]
    with pytest.raises(ValueError, match=r"'neck' .* finds nothing"):
        losses(segmentor, segmentation_batch(), views)
    views = [dict(taps='backbone', loss='gram', regions='all')]
    teacher = make_teacher(segmentor)
    del teacher.backbone
    with pytest.raises(ValueError, match='finds nothing'):
        Distillation(
            make_teacher(segmentor),
            teacher,
            config=DistillationConfig.from_dict({'views': views}),
        )
    views = [
        dict(taps='backbone', loss='squared_feature', regions='discrepancy')
    ]
    with pytest.raises(ValueError, match='needs a detector'):
        losses(segmentor, segmentation_batch(), views)


def test_another_width_is_refused():
    model = build('retinanet', {}).eval()
    wide = build(
        'retinanet',
        {
            'neck': dict(out_channels=8),
            'bbox_head': dict(in_channels=8),
        },
    ).eval()
    batch = detection_batch()
    data = model.data_preprocessor(copy.deepcopy(batch), True)
    for loss, refused in (('squared_feature', True), ('gram', False)):
        views = [dict(taps='neck', loss=loss)]
        added = Distillation(
            make_teacher(model),
            make_teacher(wide),
            config=DistillationConfig.from_dict({'views': views}),
        )
        added.attach()
        if refused:
            with pytest.raises(ValueError, match='16 channels, but 8'):
                added.student.loss(data['inputs'], data['data_samples'])
        else:
            found = added.student.loss(data['inputs'], data['data_samples'])
            assert found['loss_gram'].item() > 0
