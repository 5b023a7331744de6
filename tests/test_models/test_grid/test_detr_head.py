"""Deformable DETR and DINO over a grid: like the host's, and in training."""

import copy

import pytest
import torch

pytest.importorskip('mmdet')

import tiny_detectors as tiny

from taskptq.methods.box_grid.box_grid import BoxGrid
from taskptq.models.grid import head as grid_head
from taskptq.models.grid.detr_head import GridDETRHeadMixin, tilted_logits

QUERIES, POINTS = 10, 17
# name -> options of the detector, width, losses by prefix
CASES = {
    'plain': (dict(), 32, ['', 'd0.']),
    'refine': (dict(with_box_refine=True), 32, ['', 'd0.']),
    'two-stage': (
        # Its position embedding of proposals has 512 channels, always.
        dict(with_box_refine=True, as_two_stage=True),
        256,
        ['', 'd0.', 'enc_'],
    ),
    'two-stage-shared': (dict(as_two_stage=True), 256, ['', 'd0.', 'enc_']),
    'dino': (
        dict(with_box_refine=True, as_two_stage=True),
        32,
        ['', 'd0.', 'enc_', 'dn_', 'd0.dn_'],
    ),
}


def settings_of(name, **head):
    options, width, _ = CASES[name]
    dino = name == 'dino'
    attention = dict(
        embed_dims=width, num_levels=2, num_points=2, num_heads=4, dropout=0.0
    )
    own = dict(embed_dims=width, num_heads=4, dropout=0.0)
    ffn = dict(embed_dims=width, feedforward_channels=32, ffn_drop=0.0)
    settings = dict(
        type='DINO' if dino else 'DeformableDETR',
        num_queries=QUERIES,
        num_feature_levels=2,
        **options,
        data_preprocessor=dict(
            type='DetDataPreprocessor', mean=[128.0] * 3, std=[64.0] * 3
        ),
        backbone=dict(
            type='ResNet',
            depth=18,
            base_channels=8,
            num_stages=3,
            strides=(1, 2, 2),
            dilations=(1, 1, 1),
            out_indices=(1, 2),
            norm_eval=True,
        ),
        neck=dict(
            type='ChannelMapper',
            in_channels=[16, 32],
            kernel_size=1,
            out_channels=width,
            act_cfg=None,
            norm_cfg=dict(type='GN', num_groups=4),
            num_outs=2,
        ),
        encoder=dict(
            num_layers=1, layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=ffn)
        ),
        decoder=dict(
            num_layers=2,
            return_intermediate=True,
            post_norm_cfg=None,
            layer_cfg=dict(
                self_attn_cfg=own, cross_attn_cfg=attention, ffn_cfg=ffn
            ),
        ),
        positional_encoding=dict(num_feats=width // 2, normalize=True),
        bbox_head=dict(
            type='DINOHead' if dino else 'DeformableDETRHead',
            num_classes=tiny.NUM_CLASSES,
            embed_dims=width,
            loss_cls=dict(type='FocalLoss', use_sigmoid=True, loss_weight=2.0),
            loss_bbox=dict(type='L1Loss', loss_weight=5.0),
            loss_iou=dict(type='GIoULoss', loss_weight=2.0),
            **head,
        ),
        train_cfg=dict(
            assigner=dict(
                type='HungarianAssigner',
                match_costs=[
                    dict(type='FocalLossCost', weight=2.0),
                    dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
                    dict(type='IoUCost', iou_mode='giou', weight=2.0),
                ],
            )
        ),
        test_cfg=dict(max_per_img=QUERIES),
    )
    if dino:
        settings['dn_cfg'] = dict(
            label_noise_scale=0.5,
            box_noise_scale=1.0,
            group_cfg=dict(dynamic=True, num_groups=None, num_dn_queries=10),
        )
    return settings


def built(settings, *, seed):
    model = tiny.build_settings(settings, seed=seed)
    # The host leaves it as memory was, up to init_weights().
    torch.nn.init.normal_(model.level_embed)
    return model


def plain_detector(name, *, seed=0):
    return built(settings_of(name), seed=seed)


def grid_detector(name, *, seed=0, **head):
    settings = settings_of(name, **head)
    settings['bbox_head']['type'] = (
        f'taskptq.Grid{settings["bbox_head"]["type"]}'
    )
    return built(settings, seed=seed)


def layers_of(name):
    number = 3 if CASES[name][0].get('as_two_stage') else 2
    return [f'bbox_head.reg_branches.{i}.4' for i in range(number)]


def spread_out(model):
    """Logits that decide something: those of a new layer are all zero."""
    with torch.no_grad():
        for branch in model.bbox_head.reg_branches:
            torch.nn.init.normal_(branch.output_layer.weight, std=0.5)


@pytest.fixture(params=CASES)
def name(request):
    return request.param


@pytest.mark.slow
def test_trains_two_steps(name):
    model = grid_detector(
        name, loss_grid=dict(type='taskptq.GridLoss', uncertainty='min')
    )
    batch = tiny.detection_batch(num_boxes=(4, 2))
    found = tiny.train(model, batch, lr=0.001)
    assert found[2] < found[0]
    losses = tiny.losses_of(model, batch)
    kinds = ('loss_cls', 'loss_bbox', 'loss_iou', 'loss_grid')
    assert set(losses) == {
        f'{prefix}{kind}' for prefix in CASES[name][2] for kind in kinds
    }
    assert all(value.dim() == 0 for value in losses.values())
    for layer in layers_of(name):
        assert bool(model.get_submodule(layer).weight.grad.any())


@pytest.mark.parametrize('num_boxes', [(0, 3), (0, 0)])
def test_images_without_objects(name, num_boxes):
    model = grid_detector(name).train()
    batch = tiny.detection_batch(num_boxes=num_boxes)
    losses = tiny.losses_of(model, batch)
    total, _ = model.parse_losses(losses)
    assert bool(total.isfinite())
    for key, value in losses.items():
        if 'loss_grid' in key:
            assert (value.item() == 0) == (sum(num_boxes) == 0), key
    total.backward()
    for layer in layers_of(name):
        assert model.get_submodule(layer).weight.grad is not None


def test_plain_checkpoint_loads(name, monkeypatch):
    messages = []
    monkeypatch.setattr(
        grid_head, 'print_log', lambda text, **kw: messages.append(text)
    )
    tiny.check_loads(
        grid_detector(name), plain_detector(name), layers_of(name), messages
    )


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['plain', 'two-stage', 'dino'])
def test_quantizes_and_evaluates(kind):
    model = grid_detector(kind)
    model.init_weights()
    spread_out(model)
    rows = tiny.check_quantized(
        model, tiny.detection_batch(), grids=['bbox_head.box_grid']
    )
    for layer in layers_of(kind):
        if layer in rows:
            assert rows[layer].weight_bits == 8
            assert rows[layer].reason == 'edge layer'


def test_is_the_hosts_given_the_same_moves(name):
    """mmdet's head with these branches: same boxes, same other losses."""
    model = grid_detector(name)
    model.init_weights()
    spread_out(model)
    host = plain_detector(name, seed=1)
    branches = copy.deepcopy(model.bbox_head.reg_branches)
    for branch in branches:
        branch.remember = False
    host.bbox_head.reg_branches = branches
    state = {key: value for key, value in model.state_dict().items()}
    host.load_state_dict(state, strict=True)
    batch = tiny.detection_batch()
    own = tiny.losses_of(model.train(), batch)
    other = tiny.losses_of(host.train(), batch)
    assert set(own) - set(other) == {
        f'{prefix}loss_grid' for prefix in CASES[name][2]
    }
    for key, value in other.items():
        torch.testing.assert_close(own[key], value.reshape(own[key].shape))
    for one, two in zip(
        tiny.detections(model.eval(), batch),
        tiny.detections(host.eval(), batch),
        strict=True,
    ):
        torch.testing.assert_close(one.bboxes, two.bboxes)
        torch.testing.assert_close(one.scores, two.scores)


def test_logits_and_references_belong_to_their_boxes(name, monkeypatch):
    original, shapes = GridDETRHeadMixin._grid_loss, []

    def check(self, packed):
        boxes, bases = packed[..., :4], packed[..., 4:8]
        logits = packed[..., 8:].unflatten(-1, (4, POINTS))
        again = (bases + self.box_grid(logits)).sigmoid()
        usable = bases.isfinite().all(dim=-1)
        torch.testing.assert_close(
            again[usable], boxes[usable], atol=1e-4, rtol=1e-4
        )
        shapes.append(tuple(usable.shape))
        assert int(usable.sum()) > 0.5 * usable.numel()
        return original(self, packed)

    monkeypatch.setattr(GridDETRHeadMixin, '_grid_loss', check)
    model = grid_detector(name)
    model.init_weights()
    spread_out(model)
    tiny.losses_of(model.train(), tiny.detection_batch())
    assert len(shapes) == len(CASES[name][2])
    if name.startswith('two-stage'):
        # Every place of the encoder's memory.
        assert shapes[-1] == (2, 8 * 8 + 4 * 4)
    assert model.bbox_head._decoder_logits is None
    assert model.bbox_head.reg_branches[-1].last is None
    copy.deepcopy(model)


def test_grid_loss_has_the_matched_boxes_as_targets(monkeypatch):
    model = grid_detector('dino').train()
    model.init_weights()
    calls = []
    model.bbox_head.loss_grid.register_forward_hook(
        lambda module, args, kwargs, output: calls.append((args, kwargs)),
        with_kwargs=True,
    )
    original, bases = GridDETRHeadMixin._grid_loss, []

    def keep(self, packed):
        weights = torch.cat(list(self._matched[3]))[:, 0]
        bases.append(packed.flatten(0, 1)[weights > 0][:, 4:8])
        return original(self, packed)

    monkeypatch.setattr(GridDETRHeadMixin, '_grid_loss', keep)
    batch = tiny.detection_batch(num_boxes=(3, 2))
    tiny.losses_of(model, batch)
    truth = torch.cat(
        [one.gt_instances.bboxes.tensor for one in batch['data_samples']]
    )
    low, high = truth[:, :2] / tiny.SIZE, truth[:, 2:] / tiny.SIZE
    truth = torch.cat([(low + high) / 2, high - low], dim=1)
    for (args, _), base in zip(calls, bases, strict=True):
        boxes = (base + args[1]).sigmoid()
        nearest = (boxes[:, None] - truth).abs().amax(dim=-1)
        assert nearest.amin(dim=1).max() < 1e-4
        # Each object has at least one query.
        assert nearest.amin(dim=0).max() < 1e-4


@pytest.mark.parametrize('mean', [-2.0, 0.0, 1.3])
def test_tilted_logits_have_the_mean(mean):
    grid = BoxGrid(6.0, beta=1 / 3, num_intervals=16)
    logits = tilted_logits(grid, mean=mean)
    assert grid(logits).item() == pytest.approx(mean, abs=1e-4)
    assert tilted_logits(grid, mean=-9.0).isfinite().all()


def test_first_boxes_are_the_hosts():
    """The host starts sizes that refer to nothing at sigmoid(-2)."""
    model, host = grid_detector('plain'), plain_detector('plain')
    batch = tiny.detection_batch()
    model.init_weights()
    host.load_state_dict(
        {
            key: value
            for key, value in model.state_dict().items()
            if key
            not in {
                f'{layer}.{kind}'
                for layer in layers_of('plain')
                for kind in ('weight', 'bias')
            }
        },
        strict=False,
    )
    host.bbox_head.init_weights()
    for one, two in zip(
        tiny.detections(model.eval(), batch),
        tiny.detections(host.eval(), batch),
        strict=True,
    ):
        torch.testing.assert_close(
            one.bboxes, two.bboxes, atol=1e-2, rtol=1e-3
        )


@pytest.mark.parametrize(
    ('head', 'message'),
    [
        (dict(grid=dict(alpha=4.0, one_sided=True)), 'one_sided=True'),
        (dict(grid=dict(alpha=4.0, num_intervals=0)), 'num_intervals=0'),
        (
            dict(loss_grid=dict(type='taskptq.GridLoss', uncertainty='max')),
            "uncertainty='max'",
        ),
    ],
)
def test_impossible_settings_are_named(head, message):
    with pytest.raises(ValueError, match=message):
        grid_detector('plain', **head)


def test_loss_in_eval_mode_is_refused():
    model = grid_detector('plain').eval()
    with pytest.raises(RuntimeError, match='eval mode'):
        model.bbox_head.loss(
            torch.randn(2, 1, 5, 32),
            [torch.rand(1, 5, 2)] * 3,
            None,
            None,
            tiny.detection_batch()['data_samples'][:1],
        )
