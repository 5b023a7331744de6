"""NWD: the formula, as assigner metric, as loss and inside NMS."""

import pytest
import torch

pytest.importorskip('mmdet')


from mmengine.config import Config
from mmengine.structures import InstanceData

from taskptq.methods.box_grid.wasserstein import wasserstein_similarity
from taskptq.models.grid.wasserstein import (
    NWDistance,
    NWDLoss,
    wasserstein_nms,
)


def boxes(*rows):
    return torch.tensor(rows, dtype=torch.float32)


def random_boxes(number, *, size=40.0):
    low = torch.rand(number, 2) * size
    return torch.cat([low, low + 1 + torch.rand(number, 2) * size], dim=1)


ASSIGNERS = {
    'max-iou': dict(
        type='mmdet.MaxIoUAssigner',
        pos_iou_thr=0.7,
        neg_iou_thr=0.3,
        min_pos_iou=0.3,
    ),
    'atss': dict(type='mmdet.ATSSAssigner', topk=3),
}


@pytest.mark.parametrize('name', ASSIGNERS)
def test_assigners_take_it_by_config(name):
    from mmdet.registry import TASK_UTILS

    config = dict(
        ASSIGNERS[name],
        iou_calculator=dict(type='taskptq.NWDistance', constant=20.0),
    )
    assigner = TASK_UTILS.build(config)
    assert isinstance(assigner.iou_calculator, NWDistance)
    priors = boxes(
        [0, 0, 6, 6], [5, 5, 11, 11], [60, 60, 66, 66], [3, 3, 9, 9]
    )
    truth = InstanceData(bboxes=boxes([4, 4, 8, 8]), labels=torch.tensor([0]))
    levels = dict(num_level_priors=[4]) if name == 'atss' else {}
    result = assigner.assign(
        pred_instances=InstanceData(priors=priors),
        gt_instances=truth,
        **levels,
    )
    # The best by distance of center and size; IoU with it is 16 / 36 only.
    assert result.gt_inds.tolist()[3] == 1
    assert result.gt_inds.tolist()[2] == 0
    expected = wasserstein_similarity(truth.bboxes, priors, constant=20.0)
    assert result.max_overlaps[3].item() == pytest.approx(
        expected[0, 3].item()
    )


def test_ignored_regions_are_still_found_by_intersection():
    metric = NWDistance()
    inside, around = boxes([2, 2, 4, 4]), boxes([0, 0, 40, 40])
    assert metric(inside, around, mode='iof').item() == 1
    assert metric(inside, around).item() < 0.2


def test_a_score_column_is_left_out():
    metric = NWDistance()
    one, two = random_boxes(3), random_boxes(4)
    scored = torch.cat([one, torch.rand(3, 1)], dim=1)
    torch.testing.assert_close(metric(scored, two), metric(one, two))
    assert metric(one, one, is_aligned=True).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (
            lambda: NWDistance()(
                random_boxes(1), random_boxes(1), mode='giou'
            ),
            "mode='giou'",
        ),
        (lambda: NWDistance(constant=-1), 'constant=-1'),
    ],
)
def test_metric_names_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_loss_by_config_and_its_gradient_at_the_optimum():
    from mmdet.registry import MODELS

    loss = MODELS.build(
        dict(type='taskptq.NWDLoss', constant=8.0, loss_weight=2.0)
    )
    assert isinstance(loss, NWDLoss)
    target = random_boxes(5)
    pred = (target + torch.randn(5, 4)).requires_grad_()
    expected = (
        2
        * (
            1
            - wasserstein_similarity(pred, target, constant=8.0, aligned=True)
        ).mean()
    )
    torch.testing.assert_close(loss(pred, target), expected)
    same = target.clone().requires_grad_()
    value = loss(same, target)
    value.backward()
    assert value.item() == 0
    assert same.grad.abs().max().item() == 0


def test_loss_weights_and_average():
    loss = NWDLoss()
    pred, target = random_boxes(4), random_boxes(4)
    plain = loss(pred, target, reduction_override='none')
    weight = torch.tensor([1.0, 0.0, 0.5, 0.0])
    expected = (plain * weight).sum() / 3
    for form in (weight, weight[:, None].expand(4, 4)):
        torch.testing.assert_close(
            loss(pred, target, weight=form, avg_factor=3), expected
        )


def test_loss_pulls_a_distant_box_closer():
    target = boxes([10, 10, 14, 14])
    pred = boxes([30, 22, 33, 28]).requires_grad_()
    optimizer = torch.optim.SGD([pred], lr=30.0)
    values = []
    for _ in range(30):
        optimizer.zero_grad()
        value = NWDLoss()(pred, target)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.95 * values[0]


def greedy(candidates, scores, threshold):
    kept = []
    for index in scores.argsort(descending=True).tolist():
        rivals = candidates[kept] if kept else candidates[:0]
        similarity = wasserstein_similarity(candidates[index][None], rivals)
        if not bool((similarity > threshold).any()):
            kept.append(index)
    return kept


def test_nms_is_the_greedy_one():
    candidates, scores = random_boxes(40, size=8.0), torch.rand(40)
    dets, keep = wasserstein_nms(candidates, scores, iou_threshold=0.8)
    assert keep.tolist() == greedy(candidates, scores, 0.8)
    assert 1 < len(keep) < 40
    torch.testing.assert_close(dets[:, :4], candidates[keep])
    torch.testing.assert_close(dets[:, 4], scores[keep])
    _, fewer = wasserstein_nms(
        candidates, scores, iou_threshold=0.8, max_num=2
    )
    assert fewer.tolist() == keep.tolist()[:2]
    assert wasserstein_nms(candidates[:0], scores[:0])[0].shape == (0, 5)


TEXT_CONFIG = """
test_cfg = dict(nms=dict(
    type='__import__("taskptq.models.grid.wasserstein", fromlist=["x"])'
    '.wasserstein_nms',
    iou_threshold=0.8))
"""


def test_nms_from_a_text_config(tmp_path):
    from mmcv.ops import batched_nms

    path = tmp_path / 'config.py'
    path.write_text(TEXT_CONFIG)
    config = Config.fromfile(path)
    config.dump(tmp_path / 'dumped.py')
    nms = Config.fromfile(tmp_path / 'dumped.py').test_cfg.nms
    candidates = torch.cat([random_boxes(20, size=8.0)] * 2)
    scores = torch.rand(40)
    labels = torch.arange(40) // 20
    _, keep = batched_nms(candidates, scores, labels, nms)
    for label in (0, 1):
        mine = [i for i in keep.tolist() if i // 20 == label]
        part = slice(20 * label, 20 * (label + 1))
        expected = greedy(candidates[part], scores[part], 0.8)
        assert mine == [i + 20 * label for i in expected]


def test_nms_from_a_python_config(tmp_path):
    from mmcv.ops import batched_nms

    path = tmp_path / 'config.py'
    path.write_text(
        'from taskptq.models.grid.wasserstein import wasserstein_nms\n'
        'test_cfg = dict(nms=dict(type=wasserstein_nms, '
        'iou_threshold=0.8))\n'
    )
    nms = Config.fromfile(path).test_cfg.nms
    candidates, scores = random_boxes(20, size=8.0), torch.rand(20)
    labels = torch.zeros(20, dtype=torch.long)
    _, keep = batched_nms(candidates, scores, labels, nms)
    assert keep.tolist() == greedy(candidates, scores, 0.8)
