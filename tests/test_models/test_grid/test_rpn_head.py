"""Grid heads over anchors give what plain ones do, given the same deltas."""

import pytest
import torch

pytest.importorskip('mmdet')

from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData

SIZE = 64
STRIDES = [8, 16]
META = dict(
    img_shape=(SIZE, SIZE), pad_shape=(SIZE, SIZE), scale_factor=(1.0, 1.0)
)
ASSIGNER = dict(
    type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.3, min_pos_iou=0
)
TRAIN = ConfigDict(assigner=ASSIGNER, allowed_border=-1, pos_weight=-1)
TEST = ConfigDict(
    nms_pre=40,
    max_per_img=30,
    score_thr=0.0,
    min_bbox_size=0,
    nms=dict(type='nms', iou_threshold=0.7),
)
HEADS = {
    'RPNHead': dict(
        in_channels=4,
        feat_channels=4,
        anchor_generator=dict(
            type='AnchorGenerator',
            scales=[2],
            ratios=[0.5, 1.0],
            strides=STRIDES,
        ),
    ),
    'RetinaHead': dict(
        num_classes=2,
        in_channels=4,
        feat_channels=4,
        stacked_convs=1,
        anchor_generator=dict(
            type='AnchorGenerator',
            octave_base_scale=2,
            scales_per_octave=2,
            ratios=[1.0],
            strides=STRIDES,
        ),
    ),
}


@pytest.fixture(params=HEADS)
def heads(request):
    """A plain head and its grid head."""
    name = request.param
    settings = dict(HEADS[name], train_cfg=TRAIN, test_cfg=TEST)
    with DefaultScope.overwrite_default_scope('mmdet'):
        return (
            MODELS.build(dict(settings, type=name)),
            MODELS.build(
                dict(
                    settings,
                    type=f'taskptq.Grid{name}',
                    loss_bbox=dict(type='taskptq.GridLoss'),
                )
            ),
        )


def two_hot_maps(grid, maps):
    """Deltas (N, P 4, H, W) to logits (N, P 4 (n + 1), H, W)."""
    logits = grid.two_hot(maps).log().clamp(min=-1e4)
    return logits.permute(0, 1, 4, 2, 3).flatten(1, 2)


def maps_of(head, *, channels, spread):
    """Random maps of each level, two images."""
    return [
        torch.randn(2, channels, SIZE // s, SIZE // s) * spread
        for s in STRIDES
    ]


def test_same_boxes(heads):
    plain, grid = heads
    priors = plain.num_base_priors
    scores = maps_of(plain, channels=priors * plain.cls_out_channels, spread=1)
    deltas = maps_of(plain, channels=priors * 4, spread=0.3)
    logits = [two_hot_maps(grid.box_grid, d) for d in deltas]
    expected = plain.predict_by_feat(
        scores, deltas, batch_img_metas=[META] * 2
    )
    found = grid.predict_by_feat(scores, logits, batch_img_metas=[META] * 2)
    for one, two in zip(expected, found, strict=True):
        assert len(one) == len(two) > 5
        torch.testing.assert_close(two.bboxes, one.bboxes, atol=1e-3, rtol=0)
        torch.testing.assert_close(two.scores, one.scores)


def ground_truth():
    corner = torch.rand(5, 2) * 40
    boxes = torch.cat([corner, corner + 8 + torch.rand(5, 2) * 14], dim=1)
    labels = torch.zeros(5, dtype=torch.long)
    return InstanceData(bboxes=boxes, labels=labels)


def test_same_targets(heads):
    instances = [ground_truth(), ground_truth()]
    sizes = [(SIZE // s, SIZE // s) for s in STRIDES]
    plain, grid = (
        head.get_targets(
            *head.get_anchors(sizes, [META] * 2, device='cpu'),
            instances,
            [META] * 2,
        )
        for head in heads
    )
    for one, two in zip(plain[:4], grid[:4], strict=True):
        for level_one, level_two in zip(one, two, strict=True):
            assert torch.equal(level_one, level_two)
    assert plain[4] == grid[4]
    assert grid[2][0].shape[-1] == 4
    assert bool(grid[3][0].any())
    # The wrapped coder is back in its place.
    assert heads[1].bbox_coder.encode_size == 44


def test_loss_at_the_two_hot_targets_is_their_entropy(heads):
    _, head = heads
    instances = [ground_truth(), ground_truth()]
    sizes = [(SIZE // s, SIZE // s) for s in STRIDES]
    _, _, targets, weights, avg_factor = head.get_targets(
        *head.get_anchors(sizes, [META] * 2, device='cpu'),
        instances,
        [META] * 2,
    )
    priors = head.num_base_priors
    scores = maps_of(head, channels=priors * head.cls_out_channels, spread=1)
    logits = [
        two_hot_maps(
            head.box_grid,
            target.reshape(2, *size, priors * 4).permute(0, 3, 1, 2),
        )
        for target, size in zip(targets, sizes, strict=True)
    ]
    losses = head.loss_by_feat(scores, logits, instances, [META] * 2)
    name = next(key for key in losses if 'bbox' in key)
    for found, target, weight in zip(
        losses[name], targets, weights, strict=True
    ):
        entropy = head.box_grid.target_entropy(target)
        torch.testing.assert_close(
            found, (entropy * weight).sum() / avg_factor, atol=1e-5, rtol=1e-4
        )
