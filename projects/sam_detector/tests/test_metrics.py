import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData
from pycocotools import mask as mask_utils

from sam_detector.mask_ap import encode_masks, mask_average_precision
from sam_detector.metrics import (
    InstanceCocoMetric,
    PromptedMaskMetric,
    ellipse_masks,
    filled_boxes,
    match_boxes,
    paired_iou,
)

DATA = Path(__file__).resolve().parents[3] / 'data'


def square(x1, y1, x2, y2, shape=(8, 8)):
    mask = np.zeros(shape, bool)
    mask[y1:y2, x1:x2] = True
    return mask


def sample(
    *,
    truth,
    masks,
    boxes,
    gt_boxes=None,
    labels=None,
    scores=None,
    kind='gt_box',
):
    truth, masks = np.stack(truth), np.stack(masks)
    count = len(masks)
    labels = [0] * len(truth) if labels is None else labels
    predicted = InstanceData(
        bboxes=torch.tensor(boxes).float(),
        labels=torch.tensor(labels[:1] * count),
        masks=torch.from_numpy(masks),
        scores=torch.tensor(scores or [0.9] * count),
        iou=torch.tensor(scores or [0.9] * count),
    )
    return {
        'img_id': 7,
        'gt_instances': {
            'bboxes': torch.tensor(gt_boxes or boxes).float(),
            'labels': torch.tensor(labels),
            'masks': BitmapMasks(truth.astype(np.uint8), *truth.shape[1:]),
        },
        'prompted': {kind: predicted},
    }


def test_shapes_of_a_box():
    boxes = np.array([[1.0, 2.0, 5.0, 8.0], [0.0, 0.0, 1.0, 1.0]])
    filled = filled_boxes(boxes, (8, 8))
    assert np.array_equal(filled[0], square(1, 2, 5, 8))
    assert filled[1].sum() == 1
    ellipse = ellipse_masks(np.array([[0.0, 0.0, 4.0, 4.0]]), (4, 4))[0]
    # Of 4 x 4 pixels only the corners' centers, at 1.5^2 + 1.5^2 > 2^2, are
    # outside of the circle of radius 2.
    assert ellipse.sum() == 12
    assert not ellipse[0, 0]
    assert ellipse_masks(np.zeros((0, 4)), (4, 4)).shape == (0, 4, 4)


def test_iou_of_pairs():
    masks = np.stack([square(0, 0, 4, 4), square(0, 0, 0, 0)])
    truth = np.stack([square(2, 0, 6, 4), square(0, 0, 0, 0)])
    assert paired_iou(masks, truth).tolist() == [8 / 24, 0.0]


def test_prompts_from_annotations():
    metric = PromptedMaskMetric('gt_box')
    metric.process(
        None,
        [
            sample(
                truth=[square(0, 0, 4, 4), square(4, 4, 8, 8)],
                masks=[square(0, 0, 4, 4), square(4, 4, 8, 6)],
                boxes=[[0, 0, 4, 4], [4, 4, 8, 8]],
            )
        ],
    )
    found = metric.evaluate(1)
    # IoU 1 and 1/2; the boxes are the objects; each ellipse has 12 of 16.
    assert found['gt_box/miou'] == 0.75
    assert found['gt_box/miou_box'] == 1.0
    assert found['gt_box/miou_ellipse'] == 0.75
    # At IoU 0.5 both are found, above that only the first: COCO samples 101
    # recalls, of which 51 (0 to 0.5) are reached with precision 1.
    assert found['gt_box/segm_mAP_50'] == 1.0
    assert found['gt_box/segm_mAP_75'] == pytest.approx(51 / 101, abs=1e-4)
    mean = (1.0 + 9 * 51 / 101) / 10
    assert found['gt_box/segm_mAP'] == pytest.approx(mean, abs=1e-4)


def test_prompts_of_a_detector():
    metric = PromptedMaskMetric('detector')
    metric.process(
        None,
        [
            sample(
                kind='detector',
                truth=[
                    square(0, 0, 4, 4),
                    square(4, 4, 8, 8),
                    square(0, 4, 4, 8),
                ],
                # The third detection is a worse one of the first object.
                masks=[
                    square(0, 0, 4, 4),
                    square(4, 4, 8, 6),
                    square(0, 0, 4, 3),
                ],
                boxes=[[0, 0, 4, 4], [4, 4, 8, 7], [0, 0, 4, 3]],
                gt_boxes=[[0, 0, 4, 4], [4, 4, 8, 8], [0, 4, 4, 8]],
                scores=[0.9, 0.5, 0.8],
            )
        ],
    )
    found = metric.evaluate(1)
    assert found['detector/matched_miou'] == 0.75
    assert found['detector/matched_miou_box'] == (1 + 12 / 16) / 2
    assert found['detector/recall'] == pytest.approx(2 / 3, abs=1e-4)
    assert found['detector/miou'] == 0.5
    assert 'detector/segm_mAP' not in found


def test_matching_is_by_score_class_and_threshold():
    boxes = np.array([[0, 0, 4, 4], [0, 0, 4, 4], [5, 5, 9, 9]], float)
    first, second = match_boxes(
        boxes,
        np.array([0, 0, 1]),
        boxes[[0, 2]],
        np.array([0, 0]),
        scores=np.array([0.5, 0.6, 0.9]),
        iou_thr=0.5,
    )
    assert (first.tolist(), second.tolist()) == ([1], [0])
    empty = np.zeros((0, 4))
    first, _ = match_boxes(
        empty, np.zeros(0), boxes, np.zeros(3), scores=np.zeros(0), iou_thr=0.5
    )
    assert len(first) == 0


def test_images_without_objects_count_for_nothing():
    metric = PromptedMaskMetric('gt_box')
    empty = sample(
        truth=[square(0, 0, 1, 1)],
        masks=[square(0, 0, 1, 1)],
        boxes=[[0, 0, 1, 1]],
    )
    instances = empty['gt_instances']
    instances.update(
        bboxes=torch.zeros(0, 4),
        labels=torch.zeros(0).long(),
        masks=BitmapMasks(np.zeros((0, 8, 8), np.uint8), 8, 8),
    )
    empty['prompted']['gt_box'] = empty['prompted']['gt_box'][:0]
    metric.process(None, [empty])
    assert metric.evaluate(1)['gt_box/miou'] == 0.0


def test_what_is_missing_is_named():
    metric = PromptedMaskMetric('gt_point')
    data = sample(
        truth=[square(0, 0, 1, 1)],
        masks=[square(0, 0, 1, 1)],
        boxes=[[0, 0, 1, 1]],
    )
    with pytest.raises(ValueError, match=r"gt_point.*only for \['gt_box'\]"):
        metric.process(None, [data])
    del data['gt_instances']['masks']
    with pytest.raises(ValueError, match='with_mask=True'):
        PromptedMaskMetric('gt_box').process(None, [data])


def test_more_than_a_hundred_objects_all_count():
    masks = np.zeros((120, 12, 20), bool)
    for index in range(120):
        y, x = divmod(index, 20)
        masks[index, y, x] = True
    runs = encode_masks(masks)
    image = {
        'shape': (12, 20),
        'labels': [0] * 120,
        'truth': runs,
        'masks': runs,
        'scores': [0.5] * 120,
    }
    assert mask_average_precision([image])['segm_mAP'] == 1.0


def coco_file(path):
    run = mask_utils.encode(np.asfortranarray(square(0, 0, 4, 4).astype('u1')))
    content = {
        'images': [{'id': 7, 'height': 8, 'width': 8, 'file_name': 'a'}],
        'categories': [{'id': 1, 'name': 'thing'}],
        'annotations': [
            {
                'id': 1,
                'image_id': 7,
                'category_id': 1,
                'iscrowd': 0,
                'bbox': [0, 0, 4, 4],
                'area': 16,
                'segmentation': {
                    'size': run['size'],
                    'counts': run['counts'].decode(),
                },
            }
        ],
    }
    path.write_text(json.dumps(content))
    return str(path)


@pytest.mark.parametrize(('count', 'expected'), [(0, 0.0), (1, 1.0)])
def test_coco_metric_survives_no_prediction(tmp_path, count, expected):
    metric = InstanceCocoMetric(
        ann_file=coco_file(tmp_path / 'a.json'), metric=['bbox', 'segm']
    )
    metric.dataset_meta = {'classes': ('thing',)}
    predicted = {
        'bboxes': torch.tensor([[0.0, 0.0, 4.0, 4.0]])[:count],
        'scores': torch.ones(1)[:count],
        'labels': torch.zeros(1).long()[:count],
        'masks': torch.from_numpy(square(0, 0, 4, 4)[None])[:count],
    }
    metric.process(
        {}, [{'img_id': 7, 'ori_shape': (8, 8), 'pred_instances': predicted}]
    )
    found = metric.evaluate(1)
    assert found['coco/segm_mAP'] == expected
    assert found['coco/bbox_mAP_50'] == expected


@pytest.mark.data('nuclei')
def test_trivial_masks_of_nuclei():
    content = json.loads((DATA / 'nuclei/val.json').read_text())
    box, ellipse = [], []
    for item in content['annotations']:
        truth = mask_utils.decode(item['segmentation'])[None].astype(bool)
        x, y, width, height = item['bbox']
        boxes = np.array([[x, y, x + width, y + height]])
        box.append(paired_iou(filled_boxes(boxes, truth.shape[1:]), truth))
        ellipse.append(
            paired_iou(ellipse_masks(boxes, truth.shape[1:]), truth)
        )
    assert len(box) == 3854
    assert np.mean(box) == pytest.approx(0.743, abs=5e-4)
    assert np.mean(ellipse) == pytest.approx(0.7995, abs=5e-4)


def test_masks_may_be_a_tensor():
    data = sample(
        truth=[square(0, 0, 4, 4)],
        masks=[square(0, 0, 4, 4)],
        boxes=[[0, 0, 4, 4]],
    )
    data['gt_instances']['masks'] = torch.from_numpy(square(0, 0, 4, 2)[None])
    data['gt_instances']['bboxes'] = SimpleNamespace(
        tensor=torch.tensor([[0.0, 0.0, 4.0, 2.0]])
    )
    metric = PromptedMaskMetric('gt_box', mask_ap=False)
    metric.process(None, [data])
    assert metric.evaluate(1)['gt_box/miou'] == 0.5
