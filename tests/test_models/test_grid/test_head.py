"""What grid heads share: loss, coder, checks, checkpoints of plain heads."""

import copy

import pytest
import torch

pytest.importorskip('mmdet')

from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from mmengine.config import Config
from mmengine.runner.checkpoint import load_state_dict

from taskptq.methods.box_grid.box_grid import BoxGrid
from taskptq.models.grid import head as grid_head
from taskptq.models.grid.bbox_head import GridShared2FCBBoxHead
from taskptq.models.grid.head import GridBoxCoder, GridLoss
from taskptq.models.grid.retina_head import GridRetinaHead
from taskptq.models.grid.rpn_head import GridRPNHead

GRID = dict(alpha=5, beta=1, num_intervals=5)
STDS = {
    'rpn': (1.0, 1.0, 1.0, 1.0),
    'stage 1': (0.1, 0.1, 0.2, 0.2),
    'stage 2': (0.05, 0.05, 0.1, 0.1),
    'stage 3': (0.033, 0.033, 0.067, 0.067),
}


def make_loss(**settings):
    loss = GridLoss(**settings)
    loss.bind(BoxGrid(**GRID))
    return loss


def logits_and_targets(rows=7):
    logits = torch.randn(rows, 4 * 6, requires_grad=True)
    return logits, torch.randn(rows, 4)


@pytest.mark.parametrize(
    ('uncertainty', 'term'),
    [
        (None, lambda grid, z, t: 0.0),
        ('min', lambda grid, z, t: 0.5 * grid.entropy(z)),
        ('match', lambda grid, z, t: 0.5 * grid.entropy_gap(z, t)),
    ],
)
def test_loss_is_cross_entropy_and_uncertainty(uncertainty, term):
    logits, target = logits_and_targets()
    loss = make_loss(uncertainty=uncertainty, loss_weight=3.0)
    z = logits.view(7, 4, 6)
    each = loss.grid.cross_entropy(z, target) + term(loss.grid, z, target)
    found = loss(logits, target, reduction_override='none')
    torch.testing.assert_close(found, 3 * each)
    torch.testing.assert_close(loss(logits, target), 3 * each.mean())
    torch.testing.assert_close(loss(z, target), 3 * each.mean())
    torch.testing.assert_close(
        loss(logits, target, avg_factor=10), 3 * each.sum() / 10
    )
    total = make_loss(uncertainty=uncertainty, reduction='sum')(logits, target)
    torch.testing.assert_close(total, each.sum())


@pytest.mark.parametrize('per_row', [False, True])
def test_weights_select_and_scale_rows(per_row):
    logits, target = logits_and_targets()
    weight = torch.tensor([1.0, 0, 0.5, 0, 0, 2, 1])
    full = weight[:, None].expand(7, 4)
    loss = make_loss()
    each = loss(logits, target, reduction_override='none')
    found = loss(logits, target, weight if per_row else full, avg_factor=5.0)
    torch.testing.assert_close(found, (each * full).sum() / 5)
    torch.testing.assert_close(
        loss(logits, target, full), (each * full).mean()
    )
    torch.testing.assert_close(
        loss(logits, target, full, reduction_override='none'), each * full
    )


@pytest.mark.parametrize('rows', [0, 5])
def test_without_positives_the_loss_is_zero_with_a_graph(rows):
    logits, target = logits_and_targets(rows)
    loss = make_loss(uncertainty='match')(
        logits, target, torch.zeros(rows, 4), avg_factor=1
    )
    assert loss.item() == 0
    loss.backward()
    assert not logits.grad.any()


def test_gradient_is_bounded_whatever_the_target():
    logits, target = logits_and_targets(200)
    loss = make_loss(loss_weight=2.0)
    loss(logits, target * 1e4, avg_factor=8).backward()
    assert 0 < float(logits.grad.abs().max()) <= 2 / 8 + 1e-6


def test_half_precision_logits():
    logits, target = logits_and_targets()
    loss = make_loss(uncertainty='min')(logits.half(), target)
    assert loss.dtype == torch.float32
    assert bool(loss.isfinite())


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(uncertainty='max'), "uncertainty='max'"),
        (dict(reduction='median'), "reduction='median'"),
    ],
)
def test_impossible_settings_of_the_loss(settings, message):
    with pytest.raises(ValueError, match=message):
        GridLoss(**settings)


def test_a_loss_without_a_head_says_so():
    with pytest.raises(RuntimeError, match='GridLoss has no grid'):
        GridLoss()(torch.zeros(1, 24), torch.zeros(1, 4))


@pytest.mark.parametrize('stds', STDS.values(), ids=STDS)
def test_boxes_survive_the_way_through_the_grid(stds):
    """Encode, two-hot, expectation, decode: below a thousandth of a pixel."""
    grid = BoxGrid(**GRID)
    coder = GridBoxCoder(coder=DeltaXYWHBBoxCoder(target_stds=stds), grid=grid)
    assert coder.encode_size == 24
    corner = torch.rand(300, 2) * 400
    priors = torch.cat([corner, corner + 4 + torch.rand(300, 2) * 60], dim=1)
    inside = (torch.rand(300, 4) * 2 - 1) * torch.tensor(
        [5.0, 5.0, 5.0, 5.0]
    ).minimum(0.9 / torch.tensor(stds))
    boxes = coder.coder.decode(priors, inside)
    encoded = coder.encode(priors, boxes)
    logits = grid.two_hot(encoded).log().clamp(min=-1e4).flatten(1)
    assert float((coder.decode(priors, logits) - boxes).abs().max()) < 1e-3


def test_decoding_many_boxes_of_a_prior_and_none():
    coder = GridBoxCoder(coder=DeltaXYWHBBoxCoder(), grid=BoxGrid(**GRID))
    logits = torch.randn(5, 3 * coder.encode_size)
    assert coder.expectation(logits).shape == (5, 12)
    priors = torch.tensor([[0.0, 0, 9, 9]]).expand(5, 4)
    boxes = coder.decode(priors, logits, max_shape=(8, 8))
    assert boxes.shape == (5, 12)
    assert float(boxes.max()) <= 8
    empty = coder.decode(priors[:0], logits[:0, :24])
    assert empty.shape == (0, 4)


@pytest.fixture(params=['rpn', 'retina', 'bbox'])
def make_head(request):
    """Build one head of each kind with its plain counterpart."""
    from mmdet.models.dense_heads import RetinaHead, RPNHead
    from mmdet.models.roi_heads.bbox_heads import Shared2FCBBoxHead

    grid_cls, plain_cls, settings = {
        'rpn': (GridRPNHead, RPNHead, dict(in_channels=8, feat_channels=8)),
        'retina': (
            GridRetinaHead,
            RetinaHead,
            dict(
                num_classes=2, in_channels=8, feat_channels=8, stacked_convs=1
            ),
        ),
        'bbox': (
            GridShared2FCBBoxHead,
            Shared2FCBBoxHead,
            dict(num_classes=2, in_channels=8, fc_out_channels=16),
        ),
    }[request.param]

    def make(kind='grid', **changes):
        from mmengine.registry import DefaultScope

        with DefaultScope.overwrite_default_scope('mmdet'):
            if kind == 'plain':
                return plain_cls(**settings)
            loss = changes.pop('loss_bbox', dict(type='taskptq.GridLoss'))
            return grid_cls(**settings, loss_bbox=loss, **changes)

    return make


def test_default_grids_are_those_of_the_paper(make_head):
    head = make_head()
    is_box_head = isinstance(head, GridShared2FCBBoxHead)
    expected = (5.0, 1.0, 5) if is_box_head else (2.0, 1.0, 10)
    grid = head.box_grid
    assert (grid.alpha, grid.beta, grid.num_intervals) == expected
    assert head.loss_bbox.grid is grid
    names = [
        name
        for name, module in head.named_modules()
        if isinstance(module, BoxGrid)
    ]
    assert names == ['box_grid']


def test_number_of_logits(make_head):
    head, plain = make_head(grid=GRID), make_head('plain')
    name = head.regression_layers[0]
    rows = plain.get_submodule(name).weight.shape[0]
    assert head.get_submodule(name).weight.shape[0] == 6 * rows


def test_initialization_reaches_the_regression_layer(make_head):
    head = make_head()
    layer = head.get_submodule(head.regression_layers[0])
    head.init_weights()
    assert 0 < layer.weight.std().item() < 0.02
    assert not layer.bias.any()


def test_a_copied_head_keeps_one_grid(make_head):
    head = copy.deepcopy(make_head())
    assert head.loss_bbox.grid is head.box_grid
    assert head.bbox_coder.grid is head.box_grid


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(loss_bbox=dict(type='L1Loss')), 'loss_bbox=L1Loss'),
        (dict(reg_decoded_bbox=True), 'reg_decoded_bbox=True'),
        (dict(grid=dict(alpha=-1)), 'alpha=-1'),
    ],
)
def test_impossible_settings_of_a_head(make_head, changes, message):
    with pytest.raises(ValueError, match=message):
        make_head(**changes)


def test_a_loss_of_boxes_is_allowed(make_head):
    head = make_head(loss_bbox=dict(type='GIoULoss'), reg_decoded_bbox=True)
    assert type(head.loss_bbox).__name__ == 'GIoULoss'


@pytest.fixture
def messages(monkeypatch):
    found = []
    monkeypatch.setattr(
        grid_head, 'print_log', lambda text, **kwargs: found.append(text)
    )
    return found


def with_torch(head, state):
    head.load_state_dict(state, strict=True)


def with_mmengine(head, state):
    load_state_dict(head, state, strict=True)


@pytest.mark.parametrize('load', [with_torch, with_mmengine])
def test_plain_checkpoint_loads_all_but_the_regression(
    make_head, messages, load
):
    head, plain = make_head(), make_head('plain')
    name = head.regression_layers[0]
    before = copy.deepcopy(head.state_dict())
    given = plain.state_dict()
    shapes = {key: value.shape for key, value in given.items()}
    load(head, given)
    for key, value in head.state_dict().items():
        kept = key.startswith(f'{name}.')
        assert torch.equal(value, (before if kept else given)[key]), key
    assert len(messages) == 1
    assert messages[0].startswith(f'{name}: kept as initialized')
    assert {key: value.shape for key, value in given.items()} == shapes


def test_own_checkpoint_loads_in_silence(make_head, messages):
    head, other = make_head(), make_head()
    head.load_state_dict(other.state_dict(), strict=True)
    assert not messages
    for key, value in head.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])


def test_another_misfit_is_still_an_error(make_head):
    head, state = make_head(), make_head('plain').state_dict()
    key = next(k for k in state if not k.startswith(head.regression_layers))
    state[key] = torch.zeros(1, 2, 3)
    with pytest.raises(RuntimeError, match='size mismatch'):
        head.load_state_dict(state, strict=False)


def test_config_alone_makes_a_grid_head():
    """As a user writes it; what the base gave the loss is deleted."""
    settings = Config.fromstring(
        "_base_ = ['mmdet::_base_/models/faster-rcnn_r50_fpn.py']\n"
        "loss = dict(type='taskptq.GridLoss', uncertainty='min',\n"
        '            _delete_=True)\n'
        'model = dict(\n'
        "    rpn_head=dict(type='taskptq.GridRPNHead', loss_bbox=loss),\n"
        '    roi_head=dict(bbox_head=dict(\n'
        "        type='taskptq.GridShared2FCBBoxHead', loss_bbox=loss,\n"
        '        grid=dict(alpha=4, beta=1, num_intervals=7))))\n',
        '.py',
    ).model
    assert settings.rpn_head.loss_bbox == dict(
        type='taskptq.GridLoss', uncertainty='min'
    )
    assert settings.rpn_head.bbox_coder.type == 'DeltaXYWHBBoxCoder'
    from mmdet.registry import MODELS
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope('mmdet'):
        head = MODELS.build(settings.rpn_head)
    assert isinstance(head, GridRPNHead)
    assert head.loss_bbox.uncertainty == 'min'
