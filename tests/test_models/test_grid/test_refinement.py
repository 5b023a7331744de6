"""Uncertainty-guided refinement of dense, region proposal and RoI heads."""

import copy

import pytest
import torch

pytest.importorskip('mmdet')

import tiny_detectors as tiny

from taskptq.models.grid.refinement import (
    Refinement,
    perturbed,
    recorded_uncertainty,
)

LOSS = dict(type='taskptq.GridLoss', uncertainty='min')
BOX = dict(type='taskptq.GridShared2FCBBoxHead', loss_bbox=LOSS)
RPN = dict(type='taskptq.GridRPNHead', loss_bbox=LOSS)
STAGES = {f'roi_head.bbox_head.{i}': BOX for i in range(3)}
# name -> zoo model, changes, paths of heads that refine,
# loss of refinement -> loss of places
CASES = {
    'fcos': (
        'fcos',
        {'bbox_head': dict(type='taskptq.GridFCOSHead', loss_bbox=LOSS)},
        ['bbox_head'],
        {'loss_refine': ['loss_bbox']},
    ),
    'atss': (
        'atss',
        {
            'bbox_head': dict(
                type='taskptq.GridATSSHead',
                loss_bbox=LOSS,
                loss_iou=dict(type='GIoULoss'),
            )
        },
        ['bbox_head'],
        {'loss_refine': ['loss_bbox']},
    ),
    'gfl': (
        'gfl',
        {'bbox_head': dict(type='taskptq.GridGFLHead', loss_dfl=LOSS)},
        ['bbox_head'],
        {'loss_refine': ['loss_bbox', 'loss_dfl']},
    ),
    'retinanet': (
        'retinanet',
        {'bbox_head': dict(type='taskptq.GridRetinaHead', loss_bbox=LOSS)},
        ['bbox_head'],
        {'loss_refine': ['loss_bbox']},
    ),
    'faster': (
        'faster',
        {
            'rpn_head': RPN,
            'roi_head': dict(type='taskptq.RefinedStandardRoIHead'),
            'roi_head.bbox_head': BOX,
        },
        ['rpn_head', 'roi_head'],
        {'rpn_loss_refine': ['loss_rpn_bbox'], 'loss_refine': ['loss_bbox']},
    ),
    'cascade': (
        'cascade',
        {
            'roi_head': dict(type='taskptq.RefinedCascadeRoIHead'),
            **STAGES,
        },
        ['roi_head'],
        {f's{i}.loss_refine': [f's{i}.loss_bbox'] for i in range(3)},
    ),
}


def detector(name, settings):
    """A tiny detector; None for settings leaves refinement out."""
    zoo_name, changes, heads, _ = CASES[name]
    refined = {} if settings is None else {'refinement': settings}
    changes = {
        path: {**values, **(refined if path in heads else {})}
        for path, values in changes.items()
    }
    return tiny.build(zoo_name, changes)


def value_of(loss):
    return (
        float(sum(x.sum() for x in loss).detach())
        if isinstance(loss, list)
        else float(loss.detach())
    )


@pytest.fixture(params=CASES)
def name(request):
    return request.param


def test_no_step_repeats_the_first_pass(name):
    """With rho = 0 only the factor is new: same weights, same targets."""
    model = detector(name, dict(rho=0.0, weight=0.3)).train()
    losses = tiny.losses_of(model, tiny.detection_batch())
    plain = tiny.losses_of(
        detector(name, None).train(), tiny.detection_batch()
    )
    assert set(losses) == {*plain, *CASES[name][3]}
    for key, value in plain.items():
        assert value_of(losses[key]) == pytest.approx(
            value_of(value), rel=1e-4
        ), key
    for refined, parts in CASES[name][3].items():
        expected = 0.3 * sum(value_of(losses[part]) for part in parts)
        assert value_of(losses[refined]) == pytest.approx(expected, rel=1e-4)
        assert expected > 0


@pytest.mark.slow
def test_trains_two_steps(name):
    model = detector(name, dict(rho=0.5, weight=0.1))
    batch = tiny.detection_batch()
    found = tiny.train(model, batch)
    assert found[2] < found[0]
    losses = tiny.losses_of(model, batch)
    model.zero_grad()
    refined = sum(losses[key] for key in CASES[name][3])
    assert bool(refined.isfinite())
    refined.backward()
    assert bool(model.backbone.conv1.weight.grad.any())
    classes = [
        p.grad
        for key, p in model.named_parameters()
        if key.endswith(
            (
                'conv_cls.weight',
                'atss_cls.weight',
                'gfl_cls.weight',
                'retina_cls.weight',
                'rpn_cls.weight',
                'fc_cls.weight',
            )
        )
    ]
    # The second pass says nothing about classes.
    assert all(grad is None or not grad.any() for grad in classes)
    assert classes


def test_only_training_changes(name):
    refined = detector(name, dict(rho=0.5, weight=0.1)).eval()
    plain = detector(name, None).eval()
    assert list(refined.state_dict()) == list(plain.state_dict())
    batch = tiny.detection_batch()
    for one, two in zip(
        tiny.detections(refined, batch),
        tiny.detections(plain, batch),
        strict=True,
    ):
        assert torch.equal(one.bboxes, two.bboxes)
    copy.deepcopy(refined)


def test_images_without_objects(name):
    model = detector(name, dict(rho=0.5, weight=0.1)).train()
    losses = tiny.losses_of(model, tiny.detection_batch(num_boxes=(0, 0)))
    assert [value_of(losses[key]) for key in CASES[name][3]] == (
        [0.0] * len(CASES[name][3])
    )
    model.parse_losses(losses)[0].backward()


def terms_of(model, features, batch):
    data = model.data_preprocessor(copy.deepcopy(batch), True)
    with recorded_uncertainty(model.bbox_head) as terms:
        model.bbox_head.loss(features, data['data_samples'])
    return sum(terms)


def fcos_features(model, batch):
    data = model.data_preprocessor(copy.deepcopy(batch), True)
    return tuple(
        x.detach().requires_grad_() for x in model.extract_feat(data['inputs'])
    )


@pytest.mark.parametrize('rho', [0.5, 2.0])
def test_steps_have_length_rho_for_each_level_and_image(rho):
    model = detector('fcos', None).train()
    batch = tiny.detection_batch(num_boxes=(4, 0))
    features = fcos_features(model, batch)
    uncertainty = terms_of(model, features, batch)
    moved = perturbed(uncertainty, features, rho=rho)
    lengths = torch.stack(
        [
            (new - old).flatten(1).norm(dim=1)
            for new, old in zip(moved, features, strict=True)
        ]
    )
    assert lengths.shape == (5, 2)
    # The second image has no object, and the coarse levels no distances.
    assert lengths[:, 1].tolist() == [0.0] * 5
    torch.testing.assert_close(lengths[0, 0], torch.tensor(rho))
    near = (lengths[:, 0] - rho).abs() < 1e-4
    assert bool((near | (lengths[:, 0] == 0)).all())


def test_a_step_raises_the_uncertainty():
    model = detector('fcos', None).train()
    batch = tiny.detection_batch()
    features = fcos_features(model, batch)
    before = terms_of(model, features, batch)
    values = [before.item()]
    for rho in (0.01, 0.03):
        moved = perturbed(before, features, rho=rho)
        values.append(terms_of(model, moved, batch).item())
    assert values == sorted(values)
    assert values[0] < values[2]


def test_gradient_is_that_of_the_entropy_of_positives():
    """By hand for one place: dH/dz = -p (log p + H)."""
    model = detector('fcos', None).train()
    head = model.bbox_head
    loss = head.loss_bbox
    logits = torch.randn(3, 4, 17, requires_grad=True)
    with recorded_uncertainty(head) as terms:
        loss(
            logits,
            torch.rand(3, 4),
            weight=torch.tensor([1.0, 0.0, 0.5]),
            avg_factor=7.0,
        )
    (found,) = torch.autograd.grad(terms[0], logits)
    log_p = logits.detach().log_softmax(dim=-1)
    entropy = -(log_p.exp() * log_p).sum(dim=-1, keepdim=True)
    expected = -log_p.exp() * (log_p + entropy)
    expected *= torch.tensor([1.0, 0.0, 0.5])[:, None, None]
    torch.testing.assert_close(found, expected)
    assert not loss._forward_hooks


def test_targets_are_made_once(monkeypatch):
    from mmdet.models.dense_heads import AnchorHead

    calls, original = [], AnchorHead.get_targets

    def counted(self, *args, **kwargs):
        calls.append(1)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(AnchorHead, 'get_targets', counted)
    model = detector('retinanet', dict(rho=0.5)).train()
    batch = tiny.detection_batch()
    for number in (1, 2):
        tiny.losses_of(model, batch)
        assert len(calls) == number
    assert model.bbox_head._recorded is None


def test_features_of_a_frozen_neck():
    model = detector('fcos', dict(rho=0.5)).train()
    for parameter in (*model.backbone.parameters(), *model.neck.parameters()):
        parameter.requires_grad_(False)
    losses = tiny.losses_of(model, tiny.detection_batch())
    losses['loss_refine'].backward()
    assert bool(model.bbox_head.conv_reg.weight.grad.any())


def test_low_precision():
    model = detector('fcos', dict(rho=0.5)).train()
    model.init_weights()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = tiny.losses_of(model, tiny.detection_batch())
    for key, value in losses.items():
        assert bool(value.isfinite()), key
    assert losses['loss_refine'].dtype == torch.float32
    losses['loss_refine'].backward()
    assert bool(model.backbone.conv1.weight.grad.isfinite().all())


@pytest.mark.parametrize(
    ('zoo_name', 'changes', 'message'),
    [
        (
            'gfl',
            {'bbox_head': dict(type='taskptq.GridGFLHead', refinement=dict())},
            'has no taskptq',
        ),
        (
            'faster',
            {
                'roi_head': dict(
                    type='taskptq.RefinedStandardRoIHead', refinement=dict()
                )
            },
            'has no taskptq',
        ),
        (
            'fcos',
            {
                'bbox_head': dict(
                    type='taskptq.GridFCOSHead',
                    loss_bbox=LOSS,
                    refinement=dict(rho=-1.0),
                )
            },
            'rho=-1.0',
        ),
    ],
)
def test_impossible_settings_are_named(zoo_name, changes, message):
    with pytest.raises(ValueError, match=message):
        tiny.build(zoo_name, changes)


def test_published_settings_are_the_defaults():
    assert vars(Refinement()) == {'rho': 0.5, 'weight': 0.1}
