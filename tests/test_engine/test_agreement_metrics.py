"""Metrics that compare a detector's boxes with the float model's."""

import json

import pytest
import torch

pytest.importorskip('mmdet')
pytest.importorskip('pycocotools')

from taskptq.engine.agreement_metrics import BoxAgreement, BoxDump

BOXES = torch.tensor([[10.0, 10, 50, 60], [20, 30, 90, 80]])


def samples(boxes: torch.Tensor) -> list[dict]:
    """Two images with the same boxes."""
    found = {
        'bboxes': boxes,
        'scores': torch.linspace(0.9, 0.5, len(boxes)),
        'labels': torch.zeros(len(boxes), dtype=torch.long),
    }
    return [{'img_id': image, 'pred_instances': found} for image in (4, 9)]


@pytest.fixture
def reference(tmp_path):
    dump = BoxDump(str(tmp_path / 'float.json'))
    dump.process(None, samples(BOXES))
    assert dump.evaluate(2) == {'boxes': 4}
    return str(tmp_path / 'float.json')


def test_the_reference_agrees_with_itself(reference):
    metric = BoxAgreement(reference)
    metric.process(None, samples(BOXES))
    assert metric.evaluate(2) == {
        'agreement/bbox_mAP': pytest.approx(1),
        'agreement/bbox_mAP_50': pytest.approx(1),
    }


def test_a_moved_box_agrees_at_low_iou_only(reference):
    metric = BoxAgreement(reference)
    metric.process(None, samples(BOXES + 5))
    found = metric.evaluate(2)
    assert found['agreement/bbox_mAP_50'] == pytest.approx(1)
    assert 0.2 < found['agreement/bbox_mAP'] < 0.8


def test_exact_ap_and_interval(reference, tmp_path):
    annotations = {
        'images': [{'id': 4}, {'id': 9}],
        'categories': [{'id': 17, 'name': 'cat'}],
        'annotations': [
            {
                'id': index,
                'image_id': image,
                'category_id': 17,
                'bbox': [10, 10, 40, 50],
                'area': 2000,
                'iscrowd': 0,
            }
            for index, image in enumerate((4, 9), start=1)
        ],
    }
    path = tmp_path / 'labels.json'
    path.write_text(json.dumps(annotations))
    metric = BoxAgreement(reference, ann_file=str(path), num_draws=10)
    metric.dataset_meta = {'classes': ('cat',)}
    metric.process(None, samples(BOXES))
    found = metric.evaluate(2)
    assert found['exact/bbox_mAP'] == pytest.approx(1)
    assert found['of_float/low'] == found['of_float/high'] == 1


def test_masks_alone_are_refused(reference):
    with pytest.raises(ValueError, match='use it with a detector'):
        BoxAgreement(reference).process(
            None, [{'img_id': 1, 'pred_sem_seg': {}}]
        )
