"""FCOS over a grid: the host's losses and boxes, given the same distances."""

import pytest
import torch

pytest.importorskip('mmdet')


import tiny_detectors as tiny
from dense_heads import (
    GIOU,
    Outputs,
    assert_same_losses,
    grid_detector,
)


@pytest.mark.parametrize(
    'changes', [{}, dict(norm_on_bbox=True, center_sampling=True)]
)
def test_fcos_is_the_hosts_given_the_same_distances(changes):
    own = grid_detector('fcos', dict(loss_bbox=GIOU, **changes)).bbox_head
    host = tiny.build(
        'fcos', {'bbox_head': dict(loss_bbox=GIOU, **changes)}
    ).bbox_head
    outputs = Outputs(own, 'fcos')
    scaled = not changes
    assert_same_losses(
        outputs.losses(own, outputs.logits),
        outputs.losses(host, outputs.numbers(scaled=scaled)),
    )
    for one, two in zip(
        outputs.found(own.eval(), outputs.logits),
        outputs.found(host.eval(), outputs.numbers(scaled=True)),
        strict=True,
    ):
        torch.testing.assert_close(one.bboxes, two.bboxes)
        torch.testing.assert_close(one.scores, two.scores)


def test_fcos_reads_only_the_logits_of_candidates():
    head = grid_detector('fcos', dict(loss_bbox=GIOU)).bbox_head.eval()
    outputs = Outputs(head, 'fcos')
    host = head.bbox_coder, head.prior_generator
    seen = []
    head.box_grid.register_forward_hook(
        lambda _m, args, _out: seen.append(args[0].shape[:-1].numel() // 4)
    )
    cfg = head.test_cfg | dict(nms_pre=5, score_thr=0.0)
    outputs.found(head, outputs.logits)
    assert max(seen) > 25
    seen.clear()
    head.predict_by_feat(
        outputs.scores,
        outputs.logits,
        outputs.quality,
        batch_img_metas=outputs.metas,
        cfg=cfg,
    )
    # Five levels; a level of one place has three classes.
    assert len(seen) == 2
    assert max(seen) <= 25
    assert (head.bbox_coder, head.prior_generator) == host
    with pytest.raises(TypeError):
        head.predict_by_feat(outputs.scores, outputs.logits, 0)
    assert (head.bbox_coder, head.prior_generator) == host
