import copy
from unittest import mock

import pytest

pytest.importorskip('mmdet')
pytest.importorskip('mmcv.ops')

from exported_models import (
    assert_same,
    predictions,
    preprocessed,
    with_own_parts,
)
from mmengine.logging import MMLogger
from tiny_detectors import (
    BACKBONE,
    NECK,
    NUM_CLASSES,
    build,
    build_settings,
    change,
    detection_batch,
    read_zoo,
)
from torch import nn

from taskptq.engine.network_parts import parts_of
from taskptq.export.errors import OnnxFileError

PRE = dict(
    type='ConvModule',
    in_channels=16,
    out_channels=16,
    kernel_size=3,
    padding=1,
)
GENERIC = dict(
    type='GenericRoIExtractor', aggregation='sum', pre_cfg=PRE, post_cfg=None
)
QUERIES = dict(num_proposals=10, proposal_feature_channel=16)
STAGE = dict(in_channels=16, feedforward_channels=32, num_classes=NUM_CLASSES)
DYNAMIC = dict(in_channels=16, feat_channels=4, out_channels=16)


def sparse():
    """Sparse R-CNN of two stages."""
    settings = copy.deepcopy(
        read_zoo('sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py')
    )
    heads = settings['roi_head']
    heads['bbox_head'] = heads['bbox_head'][:2]
    for path, values in {
        'backbone': BACKBONE,
        'neck': NECK,
        'rpn_head': QUERIES,
        'roi_head': dict(
            num_stages=2,
            stage_loss_weights=[1, 1],
            proposal_feature_channel=16,
        ),
        'roi_head.bbox_roi_extractor': dict(out_channels=16),
        **{f'roi_head.bbox_head.{i}': STAGE for i in (0, 1)},
        **{
            f'roi_head.bbox_head.{i}.dynamic_conv_cfg': DYNAMIC for i in (0, 1)
        },
        'train_cfg': dict(rcnn=settings['train_cfg']['rcnn'][:2]),
        'test_cfg.rcnn': dict(max_per_img=20),
    }.items():
        change(settings, path, values)
    model = build_settings(settings)
    # Boxes of fresh weights may have negative sizes.
    nn.init.constant_(model.rpn_head.init_proposal_bboxes.weight[:, :2], 0.5)
    nn.init.constant_(model.rpn_head.init_proposal_bboxes.weight[:, 2:], 1.0)
    return model.eval()


def cascaded_rpn():
    """Faster R-CNN with proposals in two steps."""
    settings = copy.deepcopy(
        read_zoo(
            'cascade_rpn/cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco.py'
        )
    )
    stage = dict(in_channels=16, feat_channels=16)
    for path, values in {
        'backbone': BACKBONE,
        'neck': NECK,
        'rpn_head.stages.0': stage,
        'rpn_head.stages.1': stage,
        'roi_head.bbox_roi_extractor': dict(out_channels=16),
        'roi_head.bbox_head': dict(
            in_channels=16, fc_out_channels=32, num_classes=NUM_CLASSES
        ),
        'test_cfg.rpn': dict(nms_pre=60, max_per_img=30),
        'test_cfg.rcnn': dict(score_thr=0.0, max_per_img=20),
    }.items():
        change(settings, path, values)
    return build_settings(settings).eval()


@pytest.mark.parametrize(
    ('name', 'layers'),
    [
        ('faster', ['roi_head.bbox_head']),
        ('cascade', [f'roi_head.bbox_head.{i}' for i in range(3)]),
    ],
)
def test_two_stages_run_in_parts(name, layers):
    model = build(name, {}).eval()
    batch = detection_batch()
    parts = parts_of(model).parts(preprocessed(model, batch))
    assert [part.name for part in parts] == ['network', *layers]
    assert parts[1].input_names == ('input0',)
    assert parts[1].dynamic_axes['output.0'] == {0: 'rois'}
    host = with_own_parts(model, parts)
    assert_same(predictions(host, batch), predictions(model, batch))


def test_queries_are_counted_by_the_images_and_their_weights_are_outputs():
    model, batch = sparse(), detection_batch()
    parts = parts_of(model).parts(preprocessed(model, batch))
    assert parts[0].output_names[-2:] == (
        'rpn_head.init_proposal_bboxes.weight',
        'rpn_head.init_proposal_features.weight',
    )
    assert parts[1].dynamic_axes['input0'] == {0: 'rois*10'}
    assert parts[1].dynamic_axes['input1'] == {0: 'rois'}
    host = with_own_parts(model, parts)
    for weights in host.rpn_head.parameters():
        weights.data.zero_()
    assert_same(predictions(host, batch), predictions(model, batch))


def test_an_rpn_of_two_steps_is_cut_between_them():
    model, batch = cascaded_rpn(), detection_batch()
    data = preprocessed(model, batch)
    parts = parts_of(model).parts(data)
    assert [part.name for part in parts[1:]] == [
        'roi_head.bbox_head',
        'rpn_head.stages.1',
    ]
    assert 'rpn_head.stages.0.2.0' in parts[0].output_names
    host = with_own_parts(model, parts)
    assert_same(predictions(host, batch), predictions(model, batch))
    with pytest.raises(OnnxFileError, match=r'rpn_head\.stages\.1 takes maps'):
        parts_of(model).parts(data, dynamic=True)


def test_layers_of_an_extractor_of_rois_are_parts():
    model = build('faster', {'roi_head.bbox_roi_extractor': GENERIC}).eval()
    batch = detection_batch()
    parts = parts_of(model).parts(preprocessed(model, batch))
    assert parts[1].name == 'roi_head.bbox_roi_extractor.pre_module'
    host = with_own_parts(model, parts)
    assert_same(predictions(host, batch), predictions(model, batch))


def with_semantics(model):
    """A detector whose class adds a head on features to its prediction."""

    class Semantic(type(model)):
        def predict(self, inputs, samples, rescale=True):
            feats = self.extract_feat(inputs)
            proposals = self.rpn_head.predict(feats, samples, rescale=False)
            found = self.roi_head.predict(
                feats, proposals, samples, rescale=rescale
            )
            for one, maps in zip(
                found, self.semantic_head(feats[-1]), strict=True
            ):
                one.scores += maps.mean()
            return self.add_pred_to_datasample(samples, found)

    model.semantic_head = nn.Conv2d(16, 2, 1)
    model.idle = nn.Linear(2, 2)
    model.__class__ = Semantic
    return model.eval()


def test_heads_on_features_belong_to_the_main_part():
    model, batch = with_semantics(build('faster', {})), detection_batch()
    log = mock.patch.object(MMLogger.get_current_instance(), 'warning')
    with log as warning:
        parts = parts_of(model).parts(preprocessed(model, batch))
    assert warning.call_args[0][0].startswith('idle: no use')
    assert len(parts) == 2
    assert 'semantic_head' in parts[0].output_names
    host = with_own_parts(model, parts)
    assert_same(predictions(host, batch), predictions(model, batch))


def test_an_rpn_on_other_maps_is_refused():
    model = build('faster', {}).eval()

    class Other(type(model)):
        def predict(self, inputs, samples, rescale=True):
            feats = self.extract_feat(inputs)
            feats = [maps + 1 for maps in feats]
            return self.rpn_head.predict(feats, samples, rescale=False)

    model.__class__ = Other
    data = preprocessed(model, detection_batch())
    with pytest.raises(ValueError, match=r'rpn_head .* takes other maps'):
        parts_of(model).parts(data)


def test_a_file_of_other_parts_is_refused():
    model = build('faster', {}).eval()
    with pytest.raises(ValueError, match='check that config and file'):
        parts_of(model).install({'other': None})
    batch = detection_batch()
    parts = parts_of(model).parts(preprocessed(model, batch))
    host = with_own_parts(model, parts[:1])
    with pytest.raises(ValueError, match=r'no roi_head\.bbox_head: check'):
        predictions(host, batch)
