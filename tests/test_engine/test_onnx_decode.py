import numpy as np
import pytest
import torch

pytest.importorskip('mmdet')
pytest.importorskip('mmcv.ops')

from exported_models import preprocessed
from mmengine.registry import MODELS, DefaultScope
from tiny_detectors import build, detection_batch, zoo_settings

from taskptq.engine.network_parts import parts_of
from taskptq.engine.onnx_decode import (
    anchor_decoding,
    class_decoding,
    decode,
    decodes,
    nms,
    nms_settings,
    point_decoding,
    resize,
)

META = dict(img_shape=(60, 90), ori_shape=(120, 180), scale_factor=(0.5, 0.5))
FRAME = dict(
    image_shape=(60, 90),
    scale=(0.5, 0.5),
    padded_shape=(64, 96),
    original_shape=(120, 180),
)


def draw(*shape):
    return 0.7 * torch.randn(2, *shape)[:1]


def assert_decodes(head, outputs, settings):
    """Compare numpy's boxes with those of the host."""
    named = {
        f'{name}.{i}': tensor.numpy()
        for name, levels in outputs.items()
        for i, tensor in enumerate(levels)
    }
    found = decode(named, settings, **FRAME)
    expected = head.predict_by_feat(
        *outputs.values(), batch_img_metas=[META], rescale=True
    )[0]
    order = expected.scores.argsort(descending=True, stable=True)
    assert len(order) > 5
    np.testing.assert_allclose(
        found['scores'], expected.scores[order], atol=1e-5
    )
    np.testing.assert_allclose(
        found['boxes'], expected.bboxes[order], atol=1e-2
    )
    assert found['labels'].tolist() == expected.labels[order].tolist()


@pytest.mark.parametrize('score_thr', [0.0, 0.6])
def test_anchors_are_decoded_as_by_the_host(score_thr):
    test = dict(
        score_thr=score_thr,
        nms_pre=40,
        max_per_img=30,
        min_bbox_size=0,
        nms=dict(type='nms', iou_threshold=0.5),
    )
    head = build('retinanet', {'test_cfg': test}).bbox_head
    sizes = [(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)]
    outputs = {
        'cls_scores': [draw(27, *size) for size in sizes],
        'bbox_preds': [draw(36, *size) for size in sizes],
    }
    settings = anchor_decoding(head)
    assert settings['kind'] == 'anchors'
    assert decodes(settings, [f'{name}.0' for name in outputs])
    assert_decodes(head, outputs, settings)


def test_points_are_decoded_as_by_the_host():
    settings = dict(
        type='YOLOXHead',
        num_classes=4,
        in_channels=8,
        feat_channels=8,
        stacked_convs=1,
        test_cfg=dict(score_thr=0.2, nms=dict(type='nms', iou_threshold=0.5)),
    )
    from mmengine.config import ConfigDict

    with DefaultScope.overwrite_default_scope('mmdet'):
        head = MODELS.build(ConfigDict(settings))
    sizes = [(8, 12), (4, 6), (2, 3)]
    outputs = {
        'cls_scores': [draw(4, *size) for size in sizes],
        'bbox_preds': [draw(4, *size) for size in sizes],
        'objectnesses': [draw(1, *size) for size in sizes],
    }
    found = point_decoding(head)
    assert found['strides'] == [[8, 8], [16, 16], [32, 32]]
    assert_decodes(head, outputs, found)


@pytest.mark.parametrize('name', ['fcos', 'atss', 'gfl'])
def test_other_heads_take_the_host(name):
    model = build(name, {}).eval()
    settings = anchor_decoding(model.bbox_head)
    data = preprocessed(model, detection_batch())
    (part,) = parts_of(model).parts(data)
    assert settings is None or not decodes(settings, part.output_names)
    assert point_decoding(model.bbox_head) is None


def test_other_kinds_of_nms_take_the_host():
    soft = dict(nms=dict(type='soft_nms', iou_threshold=0.5))
    head = build('retinanet', {'test_cfg': soft}).bbox_head
    assert anchor_decoding(head) is None
    assert nms_settings(None) is None
    assert zoo_settings('retinanet', {})['test_cfg']['nms']['type'] == 'nms'


def test_nms_keeps_the_best_of_each_class():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 10.0]])
    scores = np.array([0.5, 0.9, 0.6])
    kept = nms(boxes, scores, np.array([0, 0, 1]), iou_threshold=0.5)
    assert kept.tolist() == [1, 2]
    assert nms(boxes[:0], scores[:0], scores[:0], iou_threshold=0.5).size == 0


@pytest.mark.parametrize('corners', [True, False])
@pytest.mark.parametrize('size', [(7, 11), (2, 3), (5, 6)])
def test_maps_are_resized_as_by_torch(corners, size):
    maps = torch.randn(3, 5, 6)
    expected = torch.nn.functional.interpolate(
        maps[None], size=size, mode='bilinear', align_corners=corners
    )[0]
    found = resize(maps.numpy(), size, align_corners=corners)
    np.testing.assert_allclose(found, expected, atol=1e-5)


class Segmentor:
    out_channels = 3
    align_corners = False


def test_classes_are_the_highest_logits():
    settings = class_decoding(Segmentor())
    logits = np.full((1, 3, 8, 12), -1.0, np.float32)
    logits[0, 2, :, 6:] = 1
    logits[0, 1, :, :6] = 1
    found = decode({'seg_logits': logits}, settings, **FRAME)['label_map']
    assert found.shape == (120, 180)
    assert set(found[:, :80].ravel()) == {1}
    assert set(found[:, 110:].ravel()) == {2}
    binary = Segmentor()
    binary.out_channels = 1
    assert class_decoding(binary) is None


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind 'x', which is not known"):
        decode({}, {'kind': 'x'}, **FRAME)
