"""FCOS, ATSS and GFL with grid heads: cases, and outputs to compare."""

import tiny_detectors as tiny
import torch

GIOU = dict(type='GIoULoss', loss_weight=2.0)


HEADS = {'fcos': 'GridFCOSHead', 'atss': 'GridATSSHead', 'gfl': 'GridGFLHead'}


LAYERS = {'fcos': 'conv_reg', 'atss': 'atss_reg', 'gfl': 'gfl_reg'}


def grid_loss(**values):
    return {'type': 'taskptq.GridLoss', **values}


# name -> zoo model, what the grid head changes, names of its losses
CASES = {
    'fcos': ('fcos', dict(loss_bbox=grid_loss()), {'loss_centerness'}),
    'fcos-tricks': (
        'fcos',
        dict(
            loss_bbox=grid_loss(uncertainty='min'),
            loss_iou=GIOU,
            norm_on_bbox=True,
            centerness_on_reg=True,
            center_sampling=True,
        ),
        {'loss_centerness', 'loss_iou'},
    ),
    'fcos-iou': ('fcos', dict(loss_bbox=GIOU), {'loss_centerness'}),
    'atss': ('atss', dict(loss_bbox=grid_loss()), {'loss_centerness'}),
    'atss-match': (
        'atss',
        dict(
            loss_bbox=grid_loss(uncertainty='match'),
            loss_iou=dict(type='taskptq.NWDLoss'),
        ),
        {'loss_centerness', 'loss_iou'},
    ),
    'atss-sides': (
        'atss',
        dict(
            loss_bbox=grid_loss(),
            bbox_coder=dict(type='TBLRBBoxCoder', normalizer=1.0),
            grid=dict(alpha=4.0, beta=0.5, num_intervals=8, one_sided=True),
        ),
        {'loss_centerness'},
    ),
    'gfl': ('gfl', dict(loss_bbox=grid_loss(uncertainty='min')), set()),
    'gfl-iou': (
        'gfl',
        dict(loss_bbox=grid_loss(), loss_iou=GIOU),
        {'loss_iou'},
    ),
    'gfl-kept': ('gfl', {}, {'loss_dfl'}),
    'gfl-mixed': (
        'gfl',
        dict(loss_dfl=grid_loss(uncertainty='match')),
        {'loss_dfl'},
    ),
}


def settings_of(zoo_name, changes):
    settings = tiny.zoo_settings(zoo_name, {})
    tiny.change(
        settings,
        'bbox_head',
        {'type': f'taskptq.{HEADS[zoo_name]}', **changes},
    )
    return settings


def grid_detector(zoo_name, changes):
    return tiny.build_settings(settings_of(zoo_name, changes))


class Outputs:
    """Random outputs of a head, as logits and as what a plain head gives."""

    def __init__(self, head, zoo_name):
        sizes = [8, 4, 2, 1, 1]
        points = head.box_grid.num_points
        self.scores = [torch.randn(2, 3, s, s) for s in sizes]
        self.quality = [torch.randn(2, 1, s, s) for s in sizes]
        self.logits = [
            (3 * torch.randn(2, 4 * points, s, s)).requires_grad_()
            for s in sizes
        ]
        batch = tiny.detection_batch()
        self.truth = [s.gt_instances for s in batch['data_samples']]
        for instances in self.truth:
            instances.bboxes = instances.bboxes.tensor
        self.metas = [s.metainfo for s in batch['data_samples']]
        self.head, self.zoo_name = head, zoo_name

    def numbers(self, *, scaled):
        """Expectations, (2, 4, H, W); times the stride if scaled."""
        points = self.head.box_grid.num_points
        found = []
        for logits, stride in zip(
            self.logits, (8, 16, 32, 64, 128), strict=True
        ):
            value = self.head.box_grid(
                logits.detach().unflatten(1, (4, points)).movedim(2, -1)
            )
            found.append(value * (stride if scaled else 1))
        return found

    def factors(self):
        return [] if self.zoo_name == 'gfl' else [self.quality]

    def losses(self, head, boxes):
        return head.loss_by_feat(
            self.scores, boxes, *self.factors(), self.truth, self.metas
        )

    def found(self, head, boxes):
        return head.predict_by_feat(
            self.scores, boxes, *self.factors(), batch_img_metas=self.metas
        )


def assert_same_losses(one, two):
    assert set(one) == set(two)
    for name, value in one.items():
        if isinstance(value, list):
            value, other = torch.stack(value), torch.stack(two[name])
        else:
            other = two[name]
        torch.testing.assert_close(
            value, other, msg=lambda m, n=name: f'{n}: {m}'
        )
        assert float(value.detach().sum()) > 0
