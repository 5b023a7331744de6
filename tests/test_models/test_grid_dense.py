"""FCOS, ATSS and GFL over a grid: like the host's, and in detectors."""

import importlib.util
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmdet')

from taskptq.models.grid import gfl_head as grid_gfl_head
from taskptq.models.grid import head as grid_head

SPEC = importlib.util.spec_from_file_location(
    'tiny_detectors', Path(__file__).with_name('tiny_detectors.py')
)
tiny = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tiny)

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


@pytest.fixture(params=CASES)
def case(request):
    """(grid detector, zoo name, names of its further losses)."""
    zoo_name, changes, losses = CASES[request.param]
    return grid_detector(zoo_name, changes), zoo_name, losses


@pytest.mark.slow
def test_trains_two_steps(case):
    model, zoo_name, further = case
    batch = tiny.detection_batch()
    found = tiny.train(model, batch)
    assert found[2] < found[0]
    losses = tiny.losses_of(model, batch)
    assert set(losses) == {'loss_cls', 'loss_bbox', *further}
    layer = model.get_submodule(f'bbox_head.{LAYERS[zoo_name]}')
    assert bool(layer.weight.grad.any())


def test_images_without_objects(case):
    model, zoo_name, _ = case
    model.train()
    batch = tiny.detection_batch(num_boxes=(0, 0))
    loss, parts = model.parse_losses(tiny.losses_of(model, batch))
    places = [
        v.item() for key, v in parts.items() if key not in ('loss', 'loss_cls')
    ]
    assert places == [0.0] * (len(parts) - 2)
    loss.backward()
    layer = model.get_submodule(f'bbox_head.{LAYERS[zoo_name]}')
    assert layer.weight.grad is not None


def catch_messages(monkeypatch):
    messages = []
    for module in (grid_head, grid_gfl_head):
        monkeypatch.setattr(
            module, 'print_log', lambda text, **kw: messages.append(text)
        )
    return messages


@pytest.mark.parametrize('zoo_name', HEADS)
@pytest.mark.parametrize('num_intervals', [16, 7])
def test_plain_checkpoint_loads(zoo_name, num_intervals, monkeypatch):
    messages = catch_messages(monkeypatch)
    grid = dict(
        alpha=8.0,
        beta=0.2,
        num_intervals=num_intervals,
        one_sided=zoo_name != 'atss',
    )
    model = grid_detector(zoo_name, dict(loss_bbox=grid_loss(), grid=grid))
    tiny.check_loads(
        model,
        tiny.build(zoo_name, {}),
        [f'bbox_head.{LAYERS[zoo_name]}'],
        messages,
    )


def test_gfls_own_grid_loads_whole(monkeypatch):
    messages = catch_messages(monkeypatch)
    grid = dict(alpha=16.0, beta=0.0, num_intervals=16, one_sided=True)
    model = grid_detector('gfl', dict(grid=grid))
    plain = tiny.build('gfl', {}, seed=1)
    model.load_state_dict(plain.state_dict(), strict=True)
    assert messages == []
    batch = tiny.detection_batch()
    for one, two in zip(
        tiny.detections(model.eval(), batch),
        tiny.detections(plain.eval(), batch),
        strict=True,
    ):
        torch.testing.assert_close(one.bboxes, two.bboxes)
        torch.testing.assert_close(one.scores, two.scores)


def test_own_checkpoint_loads_whole(case, monkeypatch):
    model, _, _ = case
    messages = catch_messages(monkeypatch)
    state = {
        key: torch.randn_like(value.float()).to(value.dtype)
        for key, value in model.state_dict().items()
    }
    model.load_state_dict(state, strict=True)
    assert messages == []
    assert not any('points' in key or 'project' in key for key in state)
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])


@pytest.mark.slow
@pytest.mark.parametrize('name', ['fcos', 'fcos-tricks', 'atss', 'gfl'])
def test_quantizes_and_evaluates(name):
    zoo_name, changes, _ = CASES[name]
    model = grid_detector(zoo_name, changes)
    layer = f'bbox_head.{LAYERS[zoo_name]}'
    rows = tiny.check_quantized(
        model, tiny.detection_batch(), grids=['bbox_head.box_grid']
    )
    assert rows[layer].status == 'quantized'
    assert rows[layer].reason == 'edge layer'


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


def test_atss_is_the_hosts_given_the_same_deltas():
    own = grid_detector('atss', dict(loss_bbox=GIOU)).bbox_head
    host = tiny.build('atss', {}).bbox_head
    outputs = Outputs(own, 'atss')
    plain = outputs.numbers(scaled=False)
    assert_same_losses(
        outputs.losses(own, outputs.logits), outputs.losses(host, plain)
    )
    for one, two in zip(
        outputs.found(own, outputs.logits),
        outputs.found(host, plain),
        strict=True,
    ):
        torch.testing.assert_close(one.bboxes, two.bboxes)


def test_gfl_is_the_hosts_on_its_grid():
    grid = dict(alpha=16.0, beta=0.0, num_intervals=16, one_sided=True)
    own = grid_detector('gfl', dict(grid=grid)).bbox_head
    host = tiny.build('gfl', {}).bbox_head
    outputs = Outputs(own, 'gfl')
    assert_same_losses(
        outputs.losses(own, outputs.logits),
        outputs.losses(host, outputs.logits),
    )


def test_kept_focal_loss_is_cross_entropy_on_any_grid():
    grid = dict(alpha=10.0, beta=0.3, num_intervals=6, one_sided=True)
    kept = grid_detector(
        'gfl',
        dict(
            grid=grid,
            loss_dfl=dict(type='DistributionFocalLoss', loss_weight=1.0),
        ),
    ).bbox_head
    cross = grid_detector(
        'gfl', dict(grid=grid, loss_dfl=grid_loss())
    ).bbox_head
    outputs = Outputs(kept, 'gfl')
    assert_same_losses(
        outputs.losses(kept, outputs.logits),
        outputs.losses(cross, outputs.logits),
    )


@pytest.mark.parametrize(
    'name', ['fcos-tricks', 'atss-match', 'gfl-iou', 'atss-sides']
)
def test_cross_entropy_alone_finds_the_boxes(name):
    """Its optimum is where the kept loss of boxes vanishes."""
    zoo_name, changes, _ = CASES[name]
    changes = {**changes, 'loss_bbox': grid_loss(), 'loss_iou': GIOU}
    head = grid_detector(zoo_name, changes).bbox_head
    outputs = Outputs(head, zoo_name)
    optimizer = torch.optim.Adam(outputs.logits, lr=0.3)

    def total(losses, key):
        value = losses[key]
        return sum(value) if isinstance(value, list) else value

    before = total(outputs.losses(head, outputs.logits), 'loss_iou').item()
    for _ in range(150):
        optimizer.zero_grad()
        total(outputs.losses(head, outputs.logits), 'loss_bbox').backward()
        optimizer.step()
    after = total(outputs.losses(head, outputs.logits), 'loss_iou').item()
    assert before > 0.5
    assert after < 0.02 * before


@pytest.mark.parametrize(
    ('zoo_name', 'changes', 'message'),
    [
        ('fcos', dict(loss_bbox=GIOU, loss_iou=GIOU), 'loss_iou beside'),
        ('atss', dict(reg_decoded_bbox=False), 'reg_decoded_bbox=False'),
        ('gfl', dict(grid=dict(alpha=-1.0)), 'alpha=-1'),
    ],
)
def test_impossible_settings_are_named(zoo_name, changes, message):
    with pytest.raises(ValueError, match=message):
        grid_detector(zoo_name, changes)


def test_config_in_the_words_of_mmdet(tmp_path):
    from mmengine.config import Config

    path = tmp_path / 'config.py'
    path.write_text(
        "_base_ = ['mmdet::atss/atss_r50_fpn_1x_coco.py']\n"
        "model = dict(bbox_head=dict(type='taskptq.GridATSSHead',\n"
        '    grid=dict(alpha=8, beta=0.2, num_intervals=12),\n'
        "    loss_bbox=dict(type='taskptq.GridLoss', _delete_=True)))\n"
    )
    head = Config.fromfile(path).model.bbox_head
    assert head.loss_bbox == {'type': 'taskptq.GridLoss'}
    model = tiny.build_settings(Config.fromfile(path).model)
    assert model.bbox_head.atss_reg.out_channels == 4 * 13
