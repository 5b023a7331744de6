"""Each grid head in a tiny detector: trains, loads, quantizes, evaluates."""

import math

import pytest
import torch

pytest.importorskip('mmdet')

import tiny_detectors as tiny

from taskptq.models.grid import head as grid_head

LOSS = dict(type='taskptq.GridLoss')
RPN = dict(type='taskptq.GridRPNHead', loss_bbox=LOSS)
BOX = dict(type='taskptq.GridShared2FCBBoxHead', loss_bbox=LOSS)
# name -> zoo model, its grid heads, names of their regression layers
CASES = {
    'faster': (
        'faster',
        {'rpn_head': RPN, 'roi_head.bbox_head': BOX},
        ['rpn_head.rpn_reg', 'roi_head.bbox_head.fc_reg'],
    ),
    'faster-agnostic': (
        'faster',
        {'roi_head.bbox_head': dict(BOX, reg_class_agnostic=True)},
        ['roi_head.bbox_head.fc_reg'],
    ),
    'faster-min': (
        'faster',
        {
            'roi_head.bbox_head': dict(
                BOX, loss_bbox=dict(LOSS, uncertainty='min')
            )
        },
        ['roi_head.bbox_head.fc_reg'],
    ),
    'cascade': (
        'cascade',
        {
            'rpn_head': RPN,
            **{f'roi_head.bbox_head.{i}': BOX for i in range(3)},
        },
        [
            'rpn_head.rpn_reg',
            *(f'roi_head.bbox_head.{i}.fc_reg' for i in range(3)),
        ],
    ),
    'cascade-classes': (
        'cascade',
        {
            f'roi_head.bbox_head.{i}': dict(BOX, reg_class_agnostic=False)
            for i in range(3)
        },
        [f'roi_head.bbox_head.{i}.fc_reg' for i in range(3)],
    ),
    'retinanet': (
        'retinanet',
        {
            'bbox_head': dict(
                type='taskptq.GridRetinaHead',
                loss_bbox=dict(LOSS, uncertainty='match'),
            )
        },
        ['bbox_head.retina_reg'],
    ),
}


@pytest.fixture(params=CASES)
def case(request):
    """(grid detector, its name in the zoo, names of regression layers)."""
    zoo_name, changes, layers = CASES[request.param]
    return tiny.build(zoo_name, changes), zoo_name, layers


@pytest.mark.slow
def test_trains_two_steps(case):
    model, _, layers = case
    model.init_weights()
    model.train()
    batch = tiny.detection_batch()
    gradients = []
    for name in layers:
        model.get_submodule(name).register_full_backward_hook(
            lambda module, inputs, outputs: gradients.append(
                outputs[0].abs().max().item()
            )
        )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    found = []
    for _ in range(3):
        loss, parts = model.parse_losses(tiny.losses_of(model, batch))
        assert all(math.isfinite(v.item()) for v in parts.values())
        assert any('loss' in key and 'bbox' in key for key in parts)
        found.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert found[2] < found[0]
    # p - p* is in [-1, 1], and each loss is an average.
    assert len(gradients) >= 3 * len(layers)
    assert 0 < max(gradients) <= 1.5
    for name in layers:
        assert bool(model.get_submodule(name).weight.grad.any())


def test_images_without_objects(case):
    model, _, layers = case
    model.train()
    loss, parts = model.parse_losses(
        tiny.losses_of(model, tiny.detection_batch(num_boxes=(0, 0)))
    )
    boxes = [v.item() for key, v in parts.items() if 'bbox' in key]
    assert boxes == [0.0] * len(boxes)
    assert boxes
    loss.backward()
    for name in layers:
        assert model.get_submodule(name).weight.grad is not None


def test_plain_checkpoint_loads(case, monkeypatch):
    model, zoo_name, layers = case
    messages = []
    monkeypatch.setattr(
        grid_head, 'print_log', lambda text, **kw: messages.append(text)
    )
    before = {k: v.clone() for k, v in model.state_dict().items()}
    given = {
        key: torch.randn_like(value.float()).to(value.dtype)
        for key, value in tiny.build(zoo_name, {}).state_dict().items()
    }
    model.load_state_dict(given, strict=True)
    for key, value in model.state_dict().items():
        kept = key.rpartition('.')[0] in layers
        assert torch.equal(value, (before if kept else given)[key]), key
    assert sorted(m.partition(':')[0] for m in messages) == sorted(layers)


@pytest.mark.slow
@pytest.mark.parametrize(
    'case', ['faster', 'cascade-classes', 'retinanet'], indirect=True
)
def test_quantizes_and_evaluates(case):
    model, _, layers = case
    heads = sorted(name.rpartition('.')[0] for name in layers)
    grids = [f'{head}.box_grid' for head in heads]
    rows = tiny.check_quantized(model, tiny.detection_batch(), grids=grids)
    assert sorted(n for n in rows if n.endswith('box_grid')) == grids


@pytest.mark.parametrize('num_bits', [None, 3])
def test_bits_of_the_regression_layer(case, num_bits):
    """An edge layer at 8 bits by default, lower by overrides only."""
    model, _, layers = case
    bits = {'num_bits': num_bits}
    overrides = (
        []
        if num_bits is None
        else [
            {'pattern': f'*.{layer}', 'weight': bits, 'activation': bits}
            for layer in sorted({name.rpartition('.')[2] for name in layers})
        ]
    )
    report = tiny.quantized(
        model,
        tiny.detection_batch(),
        weight={'num_bits': 4},
        activation={'num_bits': 4},
        overrides=overrides,
    )
    rows = {row.name: row for row in report.rows}
    for name in layers:
        assert rows[name].weight_bits == (num_bits or 8)
        assert rows[name].activation_bits == (num_bits or 8)
        layer = model.get_submodule(name)
        # A grid of its own for each logit of each coordinate.
        assert layer.weight_quantizer.scale.numel() == layer.weight.shape[0]
        levels = max(len(row.unique()) for row in layer.weight.flatten(1))
        assert levels <= 2 ** (num_bits or 8)
