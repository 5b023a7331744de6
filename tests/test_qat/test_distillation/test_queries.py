"""QATHook with a teacher, on tiny DETRs inside mmengine's Runner."""

import copy
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip('mmdet')

from taskptq.core.switches import quantizers
from taskptq.engine.checkpoint_file import TRAINING_KEY, read_checkpoint
from taskptq.export import load
from taskptq.qat.distillation import (
    Distillation,
    DistillationConfig,
    ground_truth,
)
from taskptq.qat.distillation import queries as qat_distillation
from taskptq.qat.teacher import TEACHER_FILE, make_teacher

TINY_TASK = Path(__file__).resolve().parents[2] / 'tiny_task'
ALIGNED = [
    dict(
        pattern=r're:decoder\.layers\.\d+\.(self|cross)_attn(\.attn)?',
        query=dict(type='AlignedQuantizer', learn_zero_point=True),
    )
]
QCONFIG = dict(
    weight=dict(type='LSQQuantizer', num_bits=4, per_channel=True),
    activation=dict(type='LSQQuantizer', num_bits=4, learn_zero_point=True),
    attention=dict(num_bits=8),
    softmax=dict(num_bits=8),
)


@pytest.fixture
def tiny_detr(registry_guard, monkeypatch):
    from mmengine.registry import DefaultScope

    scopes = dict(DefaultScope._instance_dict)
    monkeypatch.syspath_prepend(str(TINY_TASK))
    sys.modules.pop('tiny_detr', None)
    import tiny_detr

    yield tiny_detr
    sys.modules.pop('tiny_detr', None)
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(scopes)


@pytest.fixture
def make(tiny_detr, tmp_path):
    """Build runners of one detector; work_dirs are named by the test."""
    from mmengine.config import Config
    from mmengine.runner import Runner

    count = iter(range(100))

    def build(model, load_from=None, *, work='work', hooks=(), **changes):
        config = Config(copy.deepcopy(tiny_detr.config(model)))
        config.experiment_name = f'{tmp_path.name}_{next(count)}'
        config.work_dir = str(tmp_path / work)
        config.load_from = None if load_from is None else str(load_from)
        config.custom_hooks = [h for h in hooks if isinstance(h, dict)]
        config.merge_from_dict(changes)
        runner = Runner.from_cfg(config)
        for built in hooks:
            if not isinstance(built, dict):
                runner.register_hook(built)
        return runner

    return build


@pytest.fixture
def float_weights(tiny_detr, tmp_path):
    """Write a float checkpoint of a detector; returns its path."""
    from mmengine.registry import MODELS, init_default_scope

    def write(model):
        init_default_scope('mmdet')
        torch.manual_seed(1)
        built = MODELS.build(copy.deepcopy(model))
        for parameter in built.parameters():
            # DINO leaves one unwritten, and init_weights floods the log.
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        path = tmp_path / 'float.pth'
        torch.save({'state_dict': built.state_dict(), 'meta': {}}, path)
        return path

    return write


def qat(*, distillation=None, stage=2, aligned=True, **kwargs):
    qconfig = copy.deepcopy(QCONFIG)
    if aligned:
        qconfig['overrides'] = copy.deepcopy(ALIGNED)
    return dict(
        type='taskptq.QATHook',
        qconfig=qconfig,
        stage=stage,
        calibration=dict(num_images=4),
        distillation=distillation,
        **kwargs,
    )


class Witness:
    """Sees the beginning and every step of a training."""

    def __init__(self):
        from mmengine.hooks import Hook

        witness = self

        class Seen(Hook):
            priority = 'LOW'

            def before_train(self, runner):
                witness.start(runner)

            def after_train_iter(
                self, runner, batch_idx, data_batch=None, outputs=None
            ):
                witness.logs.append(
                    {name: float(v.detach()) for name, v in outputs.items()}
                )

        self.hook = Seen()
        self.logs = []

    def start(self, runner):
        hook = next(h for h in runner.hooks if type(h).__name__ == 'QATHook')
        self.teacher = hook._teacher.model
        self.calibrated = {
            name: q.calibrated for name, q in quantizers(runner.model)
        }
        self.first = {
            name: tensor.clone()
            for name, tensor in runner.model.state_dict().items()
        }
        if self.teacher is not None:
            self.teacher_state = copy.deepcopy(self.teacher.state_dict())


def test_training_with_a_teacher(make, float_weights, tiny_detr):
    model = tiny_detr.detr()
    witness = Witness()
    runner = make(
        model, float_weights(model), hooks=[qat(distillation={}), witness.hook]
    )
    runner.train()
    logs = witness.logs
    assert len(logs) == 2
    assert all(math.isfinite(v) for log in logs for v in log.values())
    assert all(log['loss_drd'] > 0 for log in logs)
    # Weighted losses add up to what is minimized.
    parts = [v for k, v in logs[0].items() if k != 'loss' and 'loss' in k]
    assert logs[0]['loss'] == pytest.approx(sum(parts), rel=1e-5)

    checkpoint = read_checkpoint(Path(runner.work_dir) / 'epoch_1.pth')
    after = checkpoint[TRAINING_KEY]['weights']
    moved = {
        name.rpartition('.')[2]
        for name, value in after.items()
        if 'quantizer' in name
        and value.is_floating_point()
        and not torch.equal(value, witness.first[name])
    }
    assert {'scale', 'offset', 'gamma', 'beta'} <= moved
    # A frozen stage keeps its weights; its quantizers train all the same.
    name = 'backbone.layer1.0.conv1.weight'
    assert torch.equal(after[name], witness.first[name])
    name = 'backbone.layer1.0.conv1.weight_quantizer.scale'
    assert not torch.equal(after[name], witness.first[name])

    teacher = witness.teacher
    held = {id(p) for p in runner.model.parameters()}
    held |= {
        id(p)
        for group in runner.optim_wrapper.param_groups
        for p in group['params']
    }
    assert held.isdisjoint({id(p) for p in teacher.parameters()})
    assert not any('teacher' in name for name in after)
    assert not teacher.training
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, witness.teacher_state[name]), name
    assert 'loss' not in vars(runner.model)


def test_the_file_predicts_as_the_trained_model(
    make, float_weights, tiny_detr
):
    model = tiny_detr.detr()
    runner = make(model, float_weights(model), hooks=[qat(distillation={})])
    runner.train()
    runner.test()
    trained = tiny_detr.TinyBoxesMetric.predictions.clone()
    work_dir = Path(runner.work_dir)
    again = make(
        model,
        work_dir / 'quantized.pth',
        work='test',
        hooks=[dict(type='taskptq.PTQHook')],
    )
    again.test()
    assert torch.equal(tiny_detr.TinyBoxesMetric.predictions, trained)
    # A training checkpoint is frozen, evaluated and written.
    again = make(
        model,
        work_dir / 'epoch_1.pth',
        work='other',
        hooks=[dict(type='taskptq.QATHook')],
    )
    again.test()
    assert torch.equal(tiny_detr.TinyBoxesMetric.predictions, trained)
    written = [
        torch.load(path / 'quantized.pth', weights_only=True)['digest']
        for path in (work_dir, Path(again.work_dir))
    ]
    assert written[0] == written[1]


def test_denoising_queries_are_left_out(
    make, float_weights, tiny_detr, monkeypatch
):
    model = tiny_detr.dino()
    seen = []
    distance = qat_distillation.distillation_distance

    def spy(student, teacher, *, match):
        seen.append((student.shape, teacher.shape, len(match)))
        return distance(student, teacher, match=match)

    monkeypatch.setattr(qat_distillation, 'distillation_distance', spy)
    witness = Witness()
    runner = make(
        model,
        float_weights(model),
        hooks=[qat(distillation=dict(layers='all', tau=0.5)), witness.hook],
    )
    runner.train()
    assert len(seen) == 2 * len(witness.logs) == 4
    for student, teacher, pairs in seen:
        assert student == teacher == (2, 6, 16)
        assert pairs <= 12
    # Untrained boxes may miss all objects of one batch.
    assert any(pairs for _, _, pairs in seen)
    assert all(math.isfinite(log['loss_drd']) for log in witness.logs)


def test_two_stages(make, float_weights, tiny_detr):
    model = tiny_detr.detr()
    path = float_weights(model)
    first = Witness()
    runner = make(
        model,
        path,
        work='one',
        hooks=[qat(distillation={}, stage=1), first.hook],
    )
    runner.train()
    work_dir = Path(runner.work_dir)
    assert any(first.calibrated.values())
    for name, calibrated in first.calibrated.items():
        assert name.startswith('backbone.') or not calibrated, name
    rows = json.loads((work_dir / 'swap_report.json').read_text())['modules']
    assert {
        row['name'].partition('.')[0]
        for row in rows
        if row['status'] == 'quantized'
    } == {'backbone'}
    packed = load(work_dir / 'quantized.pth')
    assert all(name.startswith('backbone.') for name in packed['weights'])
    assert first.logs[0]['loss_drd'] > 0

    second = Witness()
    runner = make(
        model,
        work_dir / 'epoch_1.pth',
        work='two',
        hooks=[qat(distillation={}), second.hook],
    )
    runner.train()
    trained = read_checkpoint(work_dir / 'epoch_1.pth')[TRAINING_KEY][
        'weights'
    ]
    for name, value in trained.items():
        if 'quantizer' not in name or name.startswith('backbone.'):
            assert torch.equal(second.first[name], value), name
    grids = [name for name in second.calibrated if 'decoder' in name]
    # A shared key or value is quantized once, by its query's quantizer.
    shared = ('key_input_quantizer', 'value_input_quantizer')
    assert all(
        second.calibrated[name] for name in grids if not name.endswith(shared)
    )
    # The teacher is the float model, not the student of stage 1.
    for name, value in second.teacher.state_dict().items():
        assert torch.equal(value, first.teacher_state[name]), name


def test_resume_with_a_teacher(make, float_weights, tiny_detr):
    model = tiny_detr.detr()
    path = float_weights(model)
    changes = dict(hooks=[qat(distillation={})], train_cfg=dict(max_epochs=2))
    runner = make(model, path, work='whole', **changes)
    runner.train()
    whole = Path(runner.work_dir)
    runner = make(
        model, whole / 'epoch_1.pth', work='resumed', resume=True, **changes
    )
    runner.train()
    resumed = Path(runner.work_dir)
    expected, found = (
        read_checkpoint(folder / 'epoch_2.pth')[TRAINING_KEY]['weights']
        for folder in (whole, resumed)
    )
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    for folder in (whole, resumed):
        (folder / TEACHER_FILE).unlink()
    runner = make(
        model, whole / 'epoch_1.pth', work='resumed', resume=True, **changes
    )
    with pytest.raises(ValueError, match='float weights that this training'):
        runner.train()


AGREEMENT = dict(box_weight=1.0, class_weight=1.0, layers='all')


@pytest.fixture
def losses_of(tiny_detr):
    """Return the losses of a student that one function has changed."""
    from mmengine.registry import MODELS, init_default_scope

    def compute(settings, change=None, *, also=()):
        init_default_scope('mmdet')
        torch.manual_seed(0)
        model = MODELS.build(tiny_detr.detr()).eval()
        student, teacher = make_teacher(model), make_teacher(model)
        if change is not None:
            with torch.no_grad():
                change(student)
        added = Distillation(
            student, teacher, config=DistillationConfig.from_dict(settings)
        )
        pack = tiny_detr.TinyBoxesPack()
        batch = [pack({'img_path': f'{i}.png'}) for i in range(2)]
        data = student.data_preprocessor(
            {key: [sample[key] for sample in batch] for key in batch[0]}, False
        )
        added.attach()
        losses = student.loss(data['inputs'], data['data_samples'])
        added.detach()
        again = student.loss(data['inputs'], data['data_samples'])
        assert not OURS & again.keys()
        names = OURS.union(also) & losses.keys()
        return {name: float(losses[name]) for name in names}

    return compute


OURS = {'loss_drd', 'loss_agreement_box', 'loss_agreement_cls'}


@pytest.mark.parametrize(
    'changes',
    [
        {'fqm': False},
        {'metric': 'nwd'},
        {'matching': 'hungarian'},
        {'normalize': True},
        AGREEMENT,
    ],
)
def test_loss_of_a_float_student_is_zero(losses_of, changes):
    """Teacher and student are the same: nothing is to be rectified."""
    found = losses_of(changes)
    assert found.keys() == (OURS if changes is AGREEMENT else {'loss_drd'})
    assert found['loss_drd'] == 0.0
    assert all(abs(value) < 1e-5 for value in found.values())


def test_agreement_looks_at_boxes_and_classes(losses_of):
    def scores(model):
        model.bbox_head.fc_cls.bias += torch.linspace(
            -1, 1, len(model.bbox_head.fc_cls.bias)
        )

    def boxes(model):
        model.bbox_head.fc_reg.bias += 0.5

    found = losses_of(AGREEMENT, scores)
    assert found['loss_agreement_cls'] > 1e-3
    assert abs(found['loss_agreement_box']) < 1e-5
    twice = losses_of({**AGREEMENT, 'class_weight': 2.0}, scores)
    assert twice['loss_agreement_cls'] == pytest.approx(
        2 * found['loss_agreement_cls'], rel=1e-5
    )
    found = losses_of(AGREEMENT, boxes)
    assert found['loss_agreement_box'] > 1e-3
    assert abs(found['loss_agreement_cls']) < 1e-5
    assert losses_of({}, boxes).keys() == {'loss_drd'}


def test_normalize_takes_the_relative_distance(losses_of, monkeypatch):
    def three(student, teacher, *, match):
        return student.new_tensor(3.0)

    monkeypatch.setattr(qat_distillation, 'relative_distance', three)
    assert losses_of({'normalize': True})['loss_drd'] == 7.5
    assert losses_of({})['loss_drd'] == 0.0


def test_the_query_loss_is_a_view(tiny_detr, losses_of):
    """Taps on attention x matched queries x distance is ``loss_drd``."""
    view = dict(
        taps='attended',
        within='decoder.*cross_attn*',
        loss='feature_distance',
        regions='queries',
    )
    settings = dict(views=[view], weight=1.0, layers='all')

    def noise(model):
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))

    found = losses_of(settings, noise, also=['loss_feature_distance'])
    assert found['loss_drd'] > 0.01
    assert found['loss_feature_distance'] == pytest.approx(
        found['loss_drd'], rel=1e-5
    )
    view['weights'] = 'foreground'
    weighted = losses_of(settings, noise, also=['loss_feature_distance'])
    assert weighted['loss_drd'] == found['loss_drd']
    assert weighted['loss_feature_distance'] > 0.01
    view.update(weights='uniform', within='encoder*')
    with pytest.raises(ValueError, match='of decoder layers, not encoder'):
        losses_of(settings)


def test_ground_truth_is_relative_to_the_image(tiny_detr):
    sample = tiny_detr.TinyBoxesPack()({'img_path': 'a.png'})['data_samples']
    sample.gt_instances.bboxes = torch.tensor(
        [[12.0, 8.0, 36.0, 24.0], [0.0, 0.0, 48.0, 32.0]]
    )
    boxes = ground_truth([sample], like=torch.zeros(1))
    torch.testing.assert_close(
        boxes[0], torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]])
    )


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'tau': 2}, 'tau=2'),
        ({'weight': -1}, 'weight=-1'),
        ({'class_weight': -1}, 'class_weight=-1'),
        (
            {'box_weight': 1, 'teacher': dict(config='a', checkpoint='b')},
            'box_weight',
        ),
        ({'metric': 'iou'}, 'metric'),
        ({'layers': 'first'}, 'layers'),
        ({'matching': 'best'}, 'matching'),
        ({'lam': 1}, "unknown key 'lam'"),
        ({'fqm': False, 'teacher': dict(config='a', checkpoint='b')}, 'index'),
        ({'fqm': 'False'}, "distillation.fqm='False'"),
        ({'tau': float('nan')}, 'distillation.tau=nan'),
        ({'mu1': float('inf')}, 'distillation.mu1=inf'),
        ({'teacher': dict(config='a')}, "distillation.teacher=.*'checkpoint'"),
        ({'teacher': 'a.py'}, "distillation.teacher='a.py'"),
        ({'teacher': dict(config=1, checkpoint='b')}, 'teacher.config=1'),
    ],
)
def test_impossible_settings(changes, words):
    with pytest.raises(ValueError, match=words):
        DistillationConfig.from_dict(changes)
