"""A grid box head refines as the plain one does, given the same deltas."""

import pytest
import torch

pytest.importorskip('mmdet')

from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

from taskptq.models.grid.bbox_head import GridShared2FCBBoxHead

NUM_CLASSES = 3
STAGES = [
    (0.1, 0.1, 0.2, 0.2),
    (0.05, 0.05, 0.1, 0.1),
    (0.033, 0.033, 0.067, 0.067),
]
META = dict(img_shape=(64, 64), scale_factor=(1.0, 1.0))
TEST_CFG = ConfigDict(
    score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=50
)


@pytest.fixture(
    params=[(agnostic, stds) for agnostic in (False, True) for stds in STAGES],
    ids=lambda p: f'{"agnostic" if p[0] else "classes"}-{p[1][0]}',
)
def heads(request):
    """A plain head and a grid head of one stage."""
    from mmdet.models.roi_heads.bbox_heads import Shared2FCBBoxHead
    from mmengine.registry import DefaultScope

    agnostic, stds = request.param
    settings = dict(
        in_channels=4,
        fc_out_channels=8,
        num_classes=NUM_CLASSES,
        reg_class_agnostic=agnostic,
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=stds),
    )
    with DefaultScope.overwrite_default_scope('mmdet'):
        return Shared2FCBBoxHead(**settings), GridShared2FCBBoxHead(
            **settings, loss_bbox=dict(type='taskptq.GridLoss')
        )


@pytest.fixture
def case(heads):
    """Regions, scores, deltas and their logits."""
    plain, grid = heads
    corner = torch.rand(20, 2) * 30
    rois = torch.cat(
        [torch.zeros(20, 1), corner, corner + 6 + torch.rand(20, 2) * 20],
        dim=1,
    )
    deltas = torch.randn(
        20, 4 * (1 if plain.reg_class_agnostic else NUM_CLASSES)
    )
    logits = grid.box_grid.two_hot(deltas).log().clamp(min=-1e4).flatten(1)
    return rois, torch.randn(20, NUM_CLASSES + 1), deltas, logits


def test_forward_gives_logits(heads):
    plain, grid = heads
    features = torch.randn(5, 4, 7, 7)
    assert grid(features)[1].shape == (5, plain(features)[1].shape[1] * 6)


def test_same_detections(heads, case):
    rois, scores, deltas, logits = case
    one, two = (
        head.predict_by_feat(
            (rois,), (scores,), (values,), [META], rcnn_test_cfg=TEST_CFG
        )[0]
        for head, values in zip(heads, (deltas, logits), strict=True)
    )
    assert len(one) == len(two) > 5
    torch.testing.assert_close(two.bboxes, one.bboxes, atol=1e-3, rtol=0)
    assert torch.equal(two.labels, one.labels)


def test_same_refinement_for_the_next_stage(heads, case):
    rois, scores, deltas, logits = case
    labels = torch.randint(0, NUM_CLASSES + 1, (20,))
    samples = [InstanceData(pos_is_gt=torch.zeros(4, dtype=torch.uint8))]
    one, two = (
        head.refine_bboxes(
            samples,
            dict(
                rois=rois,
                cls_score=scores,
                bbox_pred=values,
                bbox_targets=(labels, None, None, None),
            ),
            [META],
        )[0].bboxes
        for head, values in zip(heads, (deltas, logits), strict=True)
    )
    assert one.shape == (20, 4)
    torch.testing.assert_close(two, one, atol=1e-3, rtol=0)


def test_loss_reads_the_logits_of_the_right_class(heads, case):
    """At the two-hot of the target the loss is the target's entropy."""
    plain, grid = heads
    rois, scores, _, _ = case
    labels = torch.randint(0, NUM_CLASSES, (20,))
    targets = torch.randn(20, 4)
    hot = grid.box_grid.two_hot(targets).log().clamp(min=-1e4).flatten(1)
    if plain.reg_class_agnostic:
        logits = hot
    else:
        logits = torch.zeros(20, NUM_CLASSES, hot.shape[1])
        logits[torch.arange(20), labels] = hot
        logits = logits.flatten(1)
    losses = grid.loss(
        scores,
        logits,
        rois,
        labels,
        torch.ones(20),
        targets,
        torch.ones(20, 4),
    )
    expected = grid.box_grid.target_entropy(targets).sum() / 20
    torch.testing.assert_close(
        losses['loss_bbox'], expected, atol=1e-5, rtol=1e-4
    )


def test_background_only_gives_zero_with_a_graph(heads, case):
    rois, scores, _, logits = case
    logits.requires_grad_()
    background = torch.full((20,), NUM_CLASSES)
    losses = heads[1].loss(
        scores,
        logits,
        rois,
        background,
        torch.ones(20),
        torch.zeros(20, 4),
        torch.zeros(20, 4),
    )
    assert losses['loss_bbox'].item() == 0
    losses['loss_bbox'].backward()
    assert not logits.grad.any()


def test_a_head_without_regression_is_refused():
    with pytest.raises(ValueError, match='with_reg=False'):
        GridShared2FCBBoxHead(
            in_channels=4,
            fc_out_channels=8,
            num_classes=2,
            with_reg=False,
            loss_cls=dict(type='mmdet.CrossEntropyLoss'),
            loss_bbox=dict(type='taskptq.GridLoss'),
            bbox_coder=dict(type='mmdet.DeltaXYWHBBoxCoder'),
        )
